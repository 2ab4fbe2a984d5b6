"""What `connect` does before it waits: checks its arguments and starts the I/O thread."""

import os
from collections.abc import Sequence

from ringhaul import limits
from ringhaul.arguments import check_connect, check_timeout, parse_advertised
from ringhaul.core.peer.machine import PeerOptions
from ringhaul.errors import ConnectError
from ringhaul.io.address import parse_address
from ringhaul.io.peer_runtime import PeerRuntime


def start_runtime(
    address: str | None,
    *,
    group: int,
    streams: int | None,
    name: str | None,
    min_world_size: int,
    timeout_s: float,
    admission_timeout_s: float | None,
    listen: str | None,
    advertise: Sequence[str],
) -> PeerRuntime:
    """A peer on its way; its `joined` will be set. Arguments as of `connect`."""
    text = address or os.environ.get("RINGHAUL_COORDINATOR") or f"127.0.0.1:{limits.DEFAULT_PORT}"
    host, port = parse_address(text, limits.DEFAULT_PORT)
    check_connect(group, streams, name, min_world_size)
    check_timeout(timeout_s)
    check_timeout(admission_timeout_s, "admission_timeout_s")
    where = (None, 0) if listen is None else parse_address(listen, 0)
    options = PeerOptions(
        coordinator=text,
        name=name or "",
        group=group,
        addresses=(),
        min_world_size=min_world_size,
        timeout_s=timeout_s,
        admission_timeout_s=admission_timeout_s,
    )
    runtime = PeerRuntime(
        host=host,
        port=port,
        options=options,
        streams=streams,
        listen=where,
        advertise=parse_advertised(advertise),
    )
    runtime.start()
    return runtime


def check_joined(runtime: PeerRuntime) -> PeerRuntime:
    """`joined` is set: this peer is a member, or there is an error.

    Raises:
        ConnectError: or what else has ended the I/O thread.
    """
    if runtime.view is None:
        raise runtime.error or ConnectError("the I/O thread ended before this peer was a member")
    return runtime
