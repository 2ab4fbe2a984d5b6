"""The way to the next rank: ready segments, and the streams that take them.

Whichever stream is free takes the next segment, and writes it at once in the context of who
made it ready. The receiver acknowledges whole segments, so that what a reset or stalled stream
carried is sent again on another. Decides nothing about rings or verdicts.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Protocol

from ringhaul import limits
from ringhaul.ids import Generation, PeerId
from ringhaul.io.outgoing_stream import Carried, OutgoingStream
from ringhaul.io.reactor import READ, Reactor
from ringhaul.io.sockets import DataSocket
from ringhaul.io.transfer import Segment, Transfer, TransferKey
from ringhaul.wire.segment_header import SegmentHeader

#: Grants kept for operations not begun here; the oldest are of operations long done.
_GRANTS_MAX = 2 * limits.OPEN_OPERATIONS_MAX


class Owner(Protocol):
    """Whoever made the link: the data plane."""

    def on_outgoing_broken(self, link: "OutgoingLink", reason: str) -> None:
        """The last stream ended, the link stalled, or the other side broke the protocol."""

    def on_stream_lost(self, link: "OutgoingLink", reason: str) -> None:
        """One stream of several ended: another one is wanted."""

    def on_under_way(self) -> None:
        """Something was sent that is not acknowledged: `sweep` is wanted."""


class OutgoingLink:
    """All streams to the next rank."""

    def __init__(self, peer: PeerId, number: int, reactor: Reactor, owner: Owner) -> None:
        self.peer = peer
        self.number = number
        self.generation = Generation(0)
        self.is_closed = False
        self.streams: list[OutgoingStream] = []
        self.reactor = reactor
        self._owner = owner
        #: May be sent now; operations take turns.
        self._ready: OrderedDict[TransferKey, deque[Segment]] = OrderedDict()
        #: Over the eager limit: waits for the receiver's grant.
        self._held: OrderedDict[TransferKey, deque[Segment]] = OrderedDict()
        self._granted: OrderedDict[tuple[int, TransferKey], None] = OrderedDict()
        self._eager: dict[TransferKey, int] = {}
        self._eager_bytes = 0
        self._first = 0
        self._progress = (0.0, -1)

    def add(self, sock: DataSocket) -> None:
        """Use one more stream."""
        stream = OutgoingStream(self, sock)
        self.streams.append(stream)
        self.reactor.watch(stream, READ)
        stream.push()

    def use(self, generation: Generation) -> None:
        """A generation is open: forget what older ones had under way."""
        self.generation = generation
        self._ready.clear()
        self._held.clear()
        self._eager.clear()
        self._eager_bytes = 0
        for grant in [g for g in self._granted if g[0] < generation]:
            del self._granted[grant]

    def enqueue(self, segments: Iterable[Segment]) -> None:
        """Have segments of one transfer sent by the next free streams, at once if one is."""
        for segment in segments:
            self._admit(segment)
            if self._ready:
                self.pump()

    def _admit(self, segment: Segment) -> None:
        """Queue a segment as ready, or as held if nobody has asked for so much."""
        key = segment.transfer.key
        if (self.generation, key) not in self._granted:
            size = len(segment.view)
            if key in self._held or self._eager_bytes + size > limits.EAGER_BYTES_MAX:
                self._held.setdefault(key, deque()).append(segment)
                return
            self._eager[key] = self._eager.get(key, 0) + size
            self._eager_bytes += size
        queue = self._ready.get(key)
        if queue is None:
            queue = self._ready[key] = deque()
        queue.append(segment)

    def pump(self) -> None:
        """Give every free stream something to do; they take turns in being first."""
        streams = self.streams
        count = len(streams)
        for _ in range(count):
            if not self._ready:
                return
            self._first = (self._first + 1) % count
            stream = streams[self._first]
            if not stream.is_blocked and not stream.is_slow:
                stream.push()
                if count != len(streams):
                    self.pump()  # one ended, and what it carried is ready again
                    return

    def take(self) -> Segment | None:
        """The next segment that may be sent; operations take turns."""
        if not self._ready:
            return None
        key, queue = next(iter(self._ready.items()))
        segment = queue.popleft()
        if not queue:
            del self._ready[key]
        elif len(self._ready) > 1:
            self._ready.move_to_end(key)
        return segment

    def on_grant(self, header: SegmentHeader) -> None:
        """The receiver has posted an operation."""
        if header.generation < self.generation:
            return
        key = (header.tag_hash, header.ordinal)
        self._granted[header.generation, key] = None
        while len(self._granted) > _GRANTS_MAX:
            self._granted.popitem(last=False)
        if header.generation != self.generation:
            return
        self._eager_bytes -= self._eager.pop(key, 0)
        held, self._held = self._held, OrderedDict()
        for queue in held.values():  # there may be room for others now
            for segment in queue:
                self._admit(segment)
        self.pump()

    def release(self, transfer: Transfer) -> None:
        """Let go of a transfer's memory; what a stream is in the middle of is copied."""
        self._ready.pop(transfer.key, None)
        self._held.pop(transfer.key, None)
        self._granted.pop((transfer.generation, transfer.key), None)
        self._eager_bytes -= self._eager.pop(transfer.key, 0)
        for stream in self.streams:
            stream.release(transfer)

    # -- streams that end or stall --------------------------------------------------------------

    def on_stream_ended(self, stream: OutgoingStream, reason: str) -> None:
        """What it carried is sent again; without streams the link is broken."""
        if self.is_closed or stream not in self.streams:
            return
        self._drop(stream)
        if not self.streams:
            self.on_broken(reason)
            return
        if all(other.is_slow for other in self.streams):
            for other in self.streams:
                other.is_slow = False
        for carried in reversed(stream.unacknowledged):
            self._send_again(carried)
        self._owner.on_stream_lost(self, reason)
        self.pump()

    def _drop(self, stream: OutgoingStream) -> None:
        self.streams.remove(stream)
        self.reactor.forget(stream)
        stream.sock.close()

    def _send_again(self, carried: Carried) -> None:
        segment = carried.segment
        if (
            segment is None
            or carried.is_sent_again
            or segment.transfer.generation != self.generation
        ):
            return
        carried.is_sent_again = True
        segment.transfer.sent_bytes += len(segment.view)
        self._ready.setdefault(segment.transfer.key, deque()).appendleft(segment)

    def sweep(self, now: float) -> bool:
        """Look for streams and links that stall; tell whether anything is under way."""
        if not any(stream.unacknowledged for stream in self.streams):
            self._progress = (now, -1)
            return False
        for stream in list(self.streams):
            self._judge(stream, now)
        self.pump()
        self._judge_link(now)
        return True

    def _judge_link(self, now: float) -> None:
        """A link with something under way has to move at a minimum rate."""
        total = sum(stream.acknowledged_bytes() for stream in self.streams)
        since, acknowledged = self._progress
        elapsed_s = now - since
        if not 0 <= acknowledged <= total or (
            elapsed_s > 1.0 and total - acknowledged >= elapsed_s * limits.LINK_RATE_MIN
        ):  # it was idle, or streams have changed
            self._progress = (now, total)
        elif elapsed_s > limits.LINK_STALLED_S:
            self.on_broken(f"stalled: under {limits.LINK_RATE_MIN} B/s for {elapsed_s:.0f} s")

    def _judge(self, stream: OutgoingStream, now: float) -> None:
        """Send again what one stream holds back while others deliver."""
        others = [other for other in self.streams if other is not stream]
        if not stream.unacknowledged or not others:
            return
        patience_s = max(limits.RESEND_AFTER_S, 3 * max(other.delay_s for other in others))
        # a stream with nothing to deliver could have delivered this by now
        heard = max(other.delivered_at if other.unacknowledged else now for other in others)
        late_if_before = heard - patience_s
        late = [c for c in stream.unacknowledged if c.sent_at < late_if_before]
        if not late:
            return
        stream.is_slow = True
        for carried in reversed(late):
            self._send_again(carried)
        if now - max(stream.delivered_at, late[0].sent_at) > limits.LINK_STALLED_S:
            self.on_stream_ended(stream, "stalled")

    def on_broken(self, reason: str) -> None:
        """The link is of no use any more."""
        if not self.is_closed:
            self._owner.on_outgoing_broken(self, reason)

    def on_under_way(self) -> None:
        """A stream has sent what will be acknowledged."""
        self._owner.on_under_way()

    def close(self) -> None:
        """Close all streams."""
        self.is_closed = True
        for stream in list(self.streams):
            self._drop(stream)
