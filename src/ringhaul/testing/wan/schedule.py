"""When does a packet arrive, and does it? A pure function of when packets were sent.

A packet passes its host's uplink, the directed path to the other host (rate, a cap per flow,
loss, delay), and that host's downlink. Whatever has a rate has a drop-tail buffer before it.
"""

import heapq
import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass

from ringhaul.testing.wan.packets import FlowKey, Packet

#: A buffer holds one such packet at least: less would drop what offload batches.
BUFFER_BYTES_MIN = 128 << 10
#: When it should arrive, a number that orders what arrives together, the packet.
Due = tuple[float, int, Packet]


class Pacer:
    """A link of a rate behind a drop-tail buffer. Must be entered in order of time."""

    def __init__(self, rate_mbit: float, buffer_ms: float) -> None:
        self.bytes_per_s = rate_mbit * 1e6 / 8
        self.buffer_bytes = max(self.bytes_per_s * buffer_ms / 1e3, BUFFER_BYTES_MIN)
        self._free_at = 0.0

    def enter(self, now: float, packet: Packet) -> tuple[float, int]:
        """When what fits has left, and how many of the pieces fit."""
        queued = max(0.0, self._free_at - now) * self.bytes_per_s
        room = self.buffer_bytes - queued
        fitting = packet.piece_count
        if packet.size_bytes > room:
            fitting = int(room * packet.piece_count / packet.size_bytes)
        took_s = packet.size_bytes * fitting / packet.piece_count / self.bytes_per_s
        self._free_at = max(self._free_at, now) + took_s
        return self._free_at, fitting


@dataclass(slots=True)
class FlowState:
    """What the wire knows and does about packets of one 4-tuple in one direction."""

    bytes_count: int = 0
    pacer: Pacer | None = None
    is_silenced: bool = False
    is_rejected: bool = False


@dataclass(slots=True)
class Path:
    """From one host to another, one direction."""

    dice: random.Random
    delay_s: float = 0.0
    loss: float = 0.0
    pacer: Pacer | None = None
    flow_cap: tuple[float, float] | None = None  # rate_mbit, buffer_ms
    is_cut: bool = False
    spared: int = -1  # pieces until the next loss; drawn anew when the loss is set

    def lost_pieces(self, count: int) -> list[int]:
        """Which of the next `count` pieces are lost."""
        if self.loss <= 0.0:
            return []
        if self.spared < 0:
            self._draw()
        lost = []
        at = self.spared
        while at < count:
            lost.append(at)
            self._draw()
            at += 1 + self.spared
        self.spared = at - count
        return lost

    def _draw(self) -> None:
        if self.loss >= 1.0:
            self.spared = 0
        else:
            self.spared = int(math.log(1.0 - self.dice.random()) / math.log(1.0 - self.loss))


class Schedule:
    """Every packet under way. `send`, then `due` when `next_at` has come."""

    def __init__(self, host_count: int, seed: int = 0) -> None:
        self.host_count = host_count
        self.uplinks: list[Pacer | None] = [None] * host_count
        self.downlinks: list[Pacer | None] = [None] * host_count
        pairs = itertools.product(range(host_count), repeat=2)
        self.paths = {(a, b): Path(random.Random(f"{seed} {a} {b}")) for a, b in pairs}
        self.flows: dict[FlowKey, FlowState] = {}
        #: Pieces: "sent", "delivered", and dropped by reason.
        self.counts: Counter[str] = Counter()
        self.delivered_bytes = 0
        self._numbers = itertools.count()
        self._at_downlink: list[Due] = []
        self._at_host: list[Due] = []
        self._resets: list[Due] = []

    def send(self, now: float, packet: Packet) -> None:
        """A host sends; drops what is to be lost."""
        self.counts["sent"] += packet.piece_count
        path = self.paths.get((packet.source, packet.target))
        if path is None:
            self.counts["no such host"] += packet.piece_count
            return
        state = self.flow_of(packet.flow, path)
        state.bytes_count += packet.size_bytes
        if state.is_rejected:
            self._reject(now, packet)
            return
        if not self._passes(path, state, packet):
            return
        at, fitting = now, packet.piece_count
        for pacer in (self.uplinks[packet.source], path.pacer, state.pacer):
            if pacer is not None:
                at, fitting = pacer.enter(at, packet)
                if fitting < packet.piece_count:
                    self.counts["buffer full"] += packet.piece_count - fitting
                    if not fitting:
                        return
                    packet = packet.part(0, fitting)
        begin = 0
        for lost in [*path.lost_pieces(fitting), fitting]:
            self.counts["lost"] += lost < fitting
            if lost > begin:
                self._push(self._at_downlink, at + path.delay_s, packet.part(begin, lost))
            begin = lost + 1

    def due(self, now: float) -> list[Due]:
        """What has arrived at its host by now, in order, with the time it should have."""
        while self._at_downlink and self._at_downlink[0][0] <= now:
            at, _, packet = heapq.heappop(self._at_downlink)
            pacer = self.downlinks[packet.target]
            if pacer is not None:
                at, fitting = pacer.enter(at, packet)
                self.counts["buffer full"] += packet.piece_count - fitting
                if not fitting:
                    continue
                packet = packet.part(0, fitting)
            self._push(self._at_host, at, packet)
        arrived, self._resets = self._resets, []
        while self._at_host and self._at_host[0][0] <= now:
            due = heapq.heappop(self._at_host)
            packet = due[2]
            path = self.paths[packet.source, packet.target]
            if self._passes(path, self.flow_of(packet.flow, path), packet):
                self.counts["delivered"] += packet.piece_count
                self.delivered_bytes += packet.size_bytes
                arrived.append(due)
        return arrived

    def next_at(self) -> float | None:
        """When `due` is to be asked next."""
        heads = [heap[0][0] for heap in (self._at_downlink, self._at_host, self._resets) if heap]
        return min(heads, default=None)

    def flow_of(self, flow: FlowKey, path: Path) -> FlowState:
        """The state of a flow, made when its first packet comes."""
        state = self.flows.get(flow)
        if state is None:
            pacer = None if path.flow_cap is None else Pacer(*path.flow_cap)
            state = self.flows[flow] = FlowState(pacer=pacer)
        return state

    def _passes(self, path: Path, state: FlowState, packet: Packet) -> bool:
        """Neither cut nor silenced; also asked on arrival: a cut loses what is under way."""
        if path.is_cut or state.is_silenced or state.is_rejected:
            self.counts["cut"] += packet.piece_count
            return False
        return True

    def _reject(self, now: float, packet: Packet) -> None:
        """Answer the sender as a firewall does that has forgotten the connection."""
        self.counts["rejected"] += packet.piece_count
        reset = packet.answer_with_reset()
        if reset is not None:
            self._resets.append((now, next(self._numbers), reset))

    def _push(self, heap: list[Due], at: float, packet: Packet) -> None:
        heapq.heappush(heap, (at, next(self._numbers), packet))
