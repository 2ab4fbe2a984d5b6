"""`Wan`: hosts on one machine with a network between them that is as slow as asked."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from ringhaul.testing.wan import namespaces
from ringhaul.testing.wan.packets import address_of

why_unavailable = namespaces.why_unavailable

HOSTS_MAX = 250
#: One order, or its answer.
ORDER_BYTES_MAX = 64 << 10
#: The wire process answers orders at once, or something is wrong.
ORDER_S = 30.0


@dataclass(frozen=True)
class Flow:
    """One direction of one connection, as the wire saw it."""

    key: str
    bytes_count: int


@dataclass(frozen=True)
class WireStats:
    """What the wire has done since it was made.

    `pieces`: packets of at most the MTU, "sent", "delivered", and by reason of loss. If
    `late_ms_mean` is not small against the delay, the machine was too busy to be this network.
    """

    pieces: dict[str, int]
    delivered_bytes: int
    refused_count: int
    late_ms_max: float
    late_ms_mean: float
    cpu_s: float


class Wan:
    """Hosts, each with an address and a device of its own, and the wire between them.

    Args:
        hosts: how many.
        up_mbit, down_mbit: rate of each host's uplink and downlink, Mbit/s; None: no limit.
        delay_ms: one way, on every path.
        loss: share of packets (of MTU size) lost at random, on every path.
        buffer_ms: of each drop-tail buffer, in time at its rate (128 KiB at least).
        mtu: of the devices. 9000 is a jumbo frame; 1500 costs little more (offload).
        seed: of the losses.
        congestion: what the hosts' TCP uses, as "cubic", "bbr"; None: the machine's default.

    Everything can be changed while it runs. At the end of the `with` block the processes
    started by `spawn` are killed and the network is gone.
    """

    def __init__(
        self,
        hosts: int,
        *,
        up_mbit: float | None = None,
        down_mbit: float | None = None,
        delay_ms: float = 0.0,
        loss: float = 0.0,
        buffer_ms: float = 100.0,
        mtu: int = 9000,
        seed: int = 0,
        congestion: str | None = None,
    ) -> None:
        if not 1 <= hosts <= HOSTS_MAX:
            raise ValueError(f"hosts is 1 to {HOSTS_MAX}, not {hosts}")
        self.host_count = hosts
        self.buffer_ms = buffer_ms
        self._up, self._down = up_mbit, down_mbit
        self._path = {"delay_ms": delay_ms, "loss": loss}
        self._mtu, self._seed = mtu, seed
        self._settings = {"ipv4/tcp_no_metrics_save": "1"}  # no call profits from the one before
        if congestion is not None:
            self._settings["ipv4/tcp_congestion_control"] = congestion
        self._hosts: list[namespaces.Host] = []
        self._children: list[subprocess.Popen[Any]] = []
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._wire: subprocess.Popen[bytes] | None = None

    # -- life ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Make the hosts, start the wire.

        Raises:
            OSError: not possible here; `why_unavailable` says why.
        """
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            for number in range(self.host_count):
                self._hosts.append(namespaces.make_host(number, self._mtu, self._settings))
            self._start_wire()
            self._order("seed", seed=self._seed)
            for host in range(self.host_count):
                self.set_host(host, up_mbit=self._up, down_mbit=self._down)
            for a, b in self.pairs():
                self.set_path(a, b, **self._path)
            on_failure.pop_all()
        return self

    def _start_wire(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(ORDER_S)
        fds = [theirs.fileno(), *(host.tun for host in self._hosts)]
        words = [sys.executable, "-m", "ringhaul.testing.wan.wire", *map(str, fds)]
        with theirs:
            self._wire = subprocess.Popen(words, pass_fds=fds)
        for host in self._hosts:  # the devices are the wire's now, and end with it
            os.close(host.tun)
            host.tun = -1

    def close(self) -> None:
        """Kill what was started here and take the network down."""
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.wait()
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._wire is not None:
            self._wire.wait(ORDER_S)
            self._wire = None
        for host in self._hosts:
            os.close(host.namespace)
            if host.tun >= 0:
                os.close(host.tun)
        self._hosts.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take it down, whatever happened."""
        self.close()

    # -- hosts --------------------------------------------------------------------------------

    def address(self, host: int) -> str:
        """The IPv4 address of a host."""
        return address_of(host)

    @contextlib.contextmanager
    def inside(self, host: int) -> Iterator[None]:
        """This thread is on that host meanwhile, and so is what it starts: threads, processes."""
        with namespaces.inside(self._hosts[host].namespace):
            yield

    def spawn(
        self,
        host: int,
        words: Sequence[str],
        **options: Any,  # noqa: ANN401 - Popen's own
    ) -> "subprocess.Popen[Any]":
        """Start a process on a host; `options` are those of `subprocess.Popen`."""
        with self.inside(host):
            child = subprocess.Popen(words, **options)
        self._children.append(child)
        return child

    # -- the network --------------------------------------------------------------------------

    def pairs(self) -> list[tuple[int, int]]:
        """Every directed pair of hosts."""
        hosts = range(self.host_count)
        return [(a, b) for a in hosts for b in hosts if a != b]

    def set_host(self, host: int, *, up_mbit: float | None, down_mbit: float | None) -> None:
        """Change the rates of a host; None: no limit."""
        self._order("host", host=host, up=self._rate(up_mbit), down=self._rate(down_mbit))

    def set_path(
        self, a: int, b: int, *, delay_ms: float | None = None, loss: float | None = None
    ) -> None:
        """Change the path from a to b; None: as it is. What is under way keeps its delay."""
        changes: dict[str, float] = {}
        if delay_ms is not None:
            changes["delay_s"] = delay_ms / 1e3
        if loss is not None:
            if not 0 <= loss <= 1:
                raise ValueError(f"loss is a share, 0 to 1, not {loss}")
            changes["loss"] = loss
        self._order("path", a=a, b=b, **changes)

    def set_path_rate(self, a: int, b: int, rate_mbit: float | None) -> None:
        """Limit the path from a to b itself, besides what its hosts have."""
        self._order("path", a=a, b=b, rate=self._rate(rate_mbit))

    def cap_flows(self, a: int, b: int, rate_mbit: float | None) -> None:
        """Limit each flow from a to b, those that exist and those to come."""
        self._order("path", a=a, b=b, flow_cap=self._rate(rate_mbit))

    def cut(self, a: int, b: int) -> None:
        """Lose everything from a to b, what is under way too. The way back is another pair."""
        self._order("path", a=a, b=b, is_cut=True)

    def heal(self, a: int, b: int) -> None:
        """End a cut."""
        self._order("path", a=a, b=b, is_cut=False)

    # -- single connections -------------------------------------------------------------------

    def flows(self, a: int, b: int) -> list[Flow]:
        """What was sent from a to b, by connection, the largest first."""
        return [Flow(f["flow"], f["bytes_count"]) for f in self._order("flows", a=a, b=b)]

    def throttle(self, flow: Flow, rate_mbit: float | None) -> None:
        """Limit one flow; None: no more."""
        self._order("throttle", flow=flow.key, rate=self._rate(rate_mbit))

    def silence(self, flow: Flow) -> None:
        """Lose all of a connection from now on, both ways, without a word."""
        self._order("silence", flow=flow.key)

    def reset(self, flow: Flow) -> None:
        """Reset a connection at both ends, each at the next packet that it sends."""
        self._order("reject", flow=flow.key)

    def stats(self) -> WireStats:
        """What the wire has done so far."""
        return WireStats(**self._order("stats"))

    # -- inside -------------------------------------------------------------------------------

    def _rate(self, mbit: float | None) -> list[float] | None:
        """A rate and its buffer, for the wire."""
        return None if mbit is None else [mbit, self.buffer_ms]

    def _order(self, do: str, **fields: Any) -> Any:  # noqa: ANN401 - JSON
        """Let the wire do something; its answer."""
        assert self._control is not None, "outside of the `with` block"
        with self._lock:
            self._control.send(json.dumps({"do": do, **fields}).encode())
            return json.loads(self._control.recv(ORDER_BYTES_MAX))
