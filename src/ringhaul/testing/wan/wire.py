"""The process that is the wire: TUN devices in and out, a `Schedule` between, orders by socket.

`python -m ringhaul.testing.wan.wire CONTROL_FD TUN_FD...`, started by `Wan`. An order is one
JSON object per message; each gets one JSON object back.
"""

import contextlib
import gc
import json
import os
import select
import socket
import sys
import time
from typing import Any

from ringhaul.testing.wan.emulator import ORDER_BYTES_MAX
from ringhaul.testing.wan.packets import OFFLOAD_BYTES, FlowKey, Packet, reverse
from ringhaul.testing.wan.schedule import FlowState, Pacer, Schedule

#: One read of a device: an offloaded packet is 64 KiB at most.
READ_BYTES = OFFLOAD_BYTES + (64 << 10)
#: Reads of one device before the others, and what is due, have their turn.
READS_MAX = 64
#: Flows in one answer: it has to fit into a message.
FLOWS_MAX = 400
#: Rest between two rounds, while there is work: packets come in batches, as from a real NIC,
#: and the wire costs a third as much (1 Gbit/s: 0.5 ms is 62 KB).
REST_S = 0.0003


class WireProcess:
    """Reads, schedules, writes, until the control socket closes."""

    def __init__(self, control: socket.socket, tuns: list[int]) -> None:
        self._control = control
        self._tuns = tuns
        self._schedule = Schedule(len(tuns))
        self._late_s_max = 0.0
        self._late_s_sum = 0.0
        self._refused_count = 0

    def run(self) -> None:
        """Go on until there is nobody to give orders."""
        fds = [self._control.fileno(), *self._tuns]
        numbers = {fd: number for number, fd in enumerate(self._tuns)}
        while True:
            next_at = self._schedule.next_at()
            timeout_s = None if next_at is None else max(0.0, next_at - time.monotonic())
            readable, _, _ = select.select(fds, [], [], timeout_s)
            for fd in readable:
                if fd in numbers:
                    self._read(fd)
                elif not self._obey():
                    return
            self._deliver()
            time.sleep(REST_S)

    def _read(self, fd: int) -> None:
        """Take in what a host has sent."""
        read, send, now = os.read, self._schedule.send, time.monotonic()
        with contextlib.suppress(BlockingIOError):
            for _ in range(READS_MAX):
                packet = Packet.read(read(fd, READ_BYTES))
                if packet is not None:
                    send(now, packet)

    def _deliver(self) -> None:
        """Give out what has arrived."""
        now = time.monotonic()
        for at, _, packet in self._schedule.due(now):
            late_s = now - at
            self._late_s_sum += late_s
            self._late_s_max = max(self._late_s_max, late_s)
            try:
                os.write(self._tuns[packet.target], packet.data)
            except OSError:  # the host's device is down or has no memory: a drop like any other
                self._refused_count += 1

    def _obey(self) -> bool:
        """Carry out one order; False when there are no more."""
        message = self._control.recv(ORDER_BYTES_MAX)
        if not message:
            return False
        order = json.loads(message)
        act = getattr(self, f"do_{order.pop('do')}")
        self._control.send(json.dumps(act(**order)).encode())
        return True

    # -- orders -------------------------------------------------------------------------------

    def do_host(self, host: int, up: list[float] | None, down: list[float] | None) -> None:
        """Set the rate (Mbit/s) and buffer (ms) of a host's uplink and downlink."""
        self._schedule.uplinks[host] = Pacer(*up) if up else None
        self._schedule.downlinks[host] = Pacer(*down) if down else None

    def do_path(self, a: int, b: int, **changes: Any) -> None:  # noqa: ANN401 - JSON
        """Change what is named of a directed path."""
        path = self._schedule.paths[a, b]
        for name, value in changes.items():
            if name == "rate":
                path.pacer = Pacer(*value) if value else None
            elif name == "flow_cap":
                path.flow_cap = (value[0], value[1]) if value else None
                for flow, state in self._schedule.flows.items():
                    if (flow[3] - 1, flow[7] - 1) == (a, b):
                        state.pacer = Pacer(*value) if value else None
            else:
                assert name in ("delay_s", "loss", "is_cut"), name
                setattr(path, name, value)
        if "loss" in changes:
            path.spared = -1

    def do_seed(self, seed: int) -> None:
        """Throw the dice anew."""
        for pair, path in self._schedule.paths.items():
            path.dice.seed(f"{seed} {pair[0]} {pair[1]}")
            path.spared = -1

    def do_flows(self, a: int, b: int) -> list[dict[str, object]]:
        """The largest flows from a to b that were seen."""
        found = [
            {"flow": flow.hex(), "bytes_count": state.bytes_count}
            for flow, state in self._schedule.flows.items()
            if (flow[3] - 1, flow[7] - 1) == (a, b)
        ]
        found.sort(key=lambda each: (-int(str(each["bytes_count"])), each["flow"]))
        return found[:FLOWS_MAX]

    def do_throttle(self, flow: str, rate: list[float] | None) -> None:
        """Let one flow pass at this rate only, in this direction."""
        self._state(bytes.fromhex(flow)).pacer = Pacer(*rate) if rate else None

    def do_silence(self, flow: str) -> None:
        """Lose everything of a flow from now on, both ways."""
        for key in (bytes.fromhex(flow), reverse(bytes.fromhex(flow))):
            self._state(key).is_silenced = True

    def do_reject(self, flow: str) -> None:
        """Answer whatever either end of a flow sends with a reset."""
        for key in (bytes.fromhex(flow), reverse(bytes.fromhex(flow))):
            self._state(key).is_rejected = True

    def do_stats(self) -> dict[str, object]:
        """What the wire has done, and what it took."""
        counts = self._schedule.counts
        arrived = max(1, counts["delivered"])
        times = os.times()
        return {
            "pieces": dict(counts),
            "delivered_bytes": self._schedule.delivered_bytes,
            "refused_count": self._refused_count,
            "late_ms_max": self._late_s_max * 1e3,
            "late_ms_mean": self._late_s_sum / arrived * 1e3,
            "cpu_s": times.user + times.system,
        }

    def _state(self, flow: FlowKey) -> FlowState:
        return self._schedule.flow_of(flow, self._schedule.paths[flow[3] - 1, flow[7] - 1])


def main() -> None:
    """Be the wire."""
    control, *tuns = (int(word) for word in sys.argv[1:])
    gc.disable()  # nothing here is cyclic, and a pause would be jitter
    with contextlib.suppress(OSError):
        os.nice(-10)  # a late wire would be measured as a bad network
    with contextlib.suppress(KeyboardInterrupt):
        WireProcess(socket.socket(fileno=control), tuns).run()


if __name__ == "__main__":
    main()
