"""`connect`: checks its arguments, starts the I/O thread, and waits until it is a member."""

import math
import os
from collections.abc import Sequence

from ringhaul import limits
from ringhaul.arguments import (
    check_name,
    check_text,
    check_timeout,
    parse_advertised,
    parse_group,
    parse_min_world_size,
    parse_streams,
)
from ringhaul.communicator import Communicator
from ringhaul.core.peer.machine import PeerOptions
from ringhaul.errors import ConnectError
from ringhaul.io.address import parse_address
from ringhaul.io.peer_runtime import PeerRuntime


def connect(
    address: str | None = None,
    group: int = 0,
    streams: int | None = None,
    name: str | None = None,
    min_world_size: int = 1,
    timeout_s: float | None = 60.0,
    admission_timeout_s: float | None = None,
    *,
    listen: str | None = None,
    advertise: Sequence[str] = (),
) -> Communicator:
    """Take part in a run: returns when this peer is a member.

    Args:
        address: `host:port` of the coordinator; default: `RINGHAUL_COORDINATOR`, else
            `127.0.0.1:48148`. Host names, IPv4 and `[IPv6]`.
        group: peers of one number reduce with each other; admissions are common to all.
        streams: TCP streams to the next rank; None: the library chooses.
        name: shown in messages, and the first part of the peer id.
        min_world_size: the first generation opens when so many are there; below it calls
            raise `CollectiveAborted` and `admit` waits. The same on all members.
        timeout_s: for reaching the coordinator; None: as long as it takes.
        admission_timeout_s: for being let in; None: as long as it takes.
        listen: `host:port` for data connections of other peers; default: all interfaces, a
            free port.
        advertise: further `host[:port]` where others may reach this peer (port forwarding).

    Raises:
        ConnectError: the coordinator was not reached or refused, or no admission in time.
        TypeError, ValueError: an argument makes no sense; nothing was sent.
    """
    runtime = start_runtime(
        address,
        group=group,
        streams=streams,
        name=name,
        min_world_size=min_world_size,
        timeout_s=timeout_s,
        admission_timeout_s=admission_timeout_s,
        listen=listen,
        advertise=advertise,
    )
    try:
        runtime.joined.wait()
    except BaseException:
        runtime.close(wait_s=1.0)
        raise
    return Communicator(check_joined(runtime))


def start_runtime(
    address: str | None,
    *,
    group: int,
    streams: int | None,
    name: str | None,
    min_world_size: int,
    timeout_s: float | None,
    admission_timeout_s: float | None,
    listen: str | None,
    advertise: Sequence[str],
) -> PeerRuntime:
    """A peer on its way; its `joined` will be set. Arguments as of `connect`."""
    if address is not None:
        check_text(address, "address")
    if listen is not None:
        check_text(listen, "listen")
    text = address or os.environ.get("RINGHAUL_COORDINATOR") or f"127.0.0.1:{limits.DEFAULT_PORT}"
    host, port = parse_address(text, limits.DEFAULT_PORT)
    check_name(name)
    check_timeout(timeout_s)
    check_timeout(admission_timeout_s, "admission_timeout_s")
    where = (None, 0) if listen is None else parse_address(listen, 0)
    options = PeerOptions(
        coordinator=text,
        name=name or "",
        group=parse_group(group),
        addresses=(),
        min_world_size=parse_min_world_size(min_world_size),
        timeout_s=math.inf if timeout_s is None else timeout_s,
        admission_timeout_s=admission_timeout_s,
    )
    runtime = PeerRuntime(
        host=host,
        port=port,
        options=options,
        streams=parse_streams(streams),
        listen=where,
        advertise=parse_advertised(advertise),
    )
    try:
        runtime.start()  # waits until the thread runs, and may be interrupted there
    except BaseException:
        runtime.close(wait_s=1.0)
        raise
    return runtime


def check_joined(runtime: PeerRuntime) -> PeerRuntime:
    """`joined` is set: this peer is a member, or there is an error.

    Raises:
        ConnectError: or what else has ended the I/O thread.
    """
    if runtime.view is None:
        raise runtime.error or ConnectError("the I/O thread ended before this peer was a member")
    return runtime
