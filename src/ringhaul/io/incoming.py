"""The way from the previous rank: segments in, grants and acknowledgements back.

Reading never waits for writing, nor for a call that is not posted yet: the data plane says
where a payload goes. Decides nothing about rings or verdicts.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from ringhaul import limits
from ringhaul.errors import WireError
from ringhaul.ids import Generation, PeerId
from ringhaul.io.reactor import READ, WRITE, Reactor
from ringhaul.io.sockets import DataSocket, StreamEnded
from ringhaul.io.transfer import Transfer, TransferKey
from ringhaul.wire.segment_header import (
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    REVERSE_KINDS,
    SegmentHeader,
    SegmentKind,
    unpack_header,
)

#: Segments read from one stream before the others have their turn.
_SEGMENTS_PER_TURN = 4
_COUNT_MASK = 0xFFFFFFFF


class Sink(Protocol):
    """Whoever takes the segments: the data plane."""

    generation: Generation

    def place(self, stream: "IncomingStream", header: SegmentHeader) -> None:
        """Give the stream the memory for a payload, or leave it the scratch."""

    def accept(self, stream: "IncomingStream", header: SegmentHeader) -> None:
        """Take a payload that is whole."""

    def drop_partial(self, stream: "IncomingStream") -> None:
        """A payload will never be whole."""

    def transfers_in_flight(self) -> Iterable[Transfer]:
        """Whose data the sender has to be granted."""

    def on_incoming_broken(self, link: "IncomingLink", reason: str) -> None:
        """The last stream ended, or the other side broke the protocol."""

    def on_under_way(self) -> None:
        """Something was received that is not acknowledged: `sweep` is wanted."""


class IncomingLink:
    """All streams from the previous rank."""

    def __init__(self, peer: PeerId, number: int, reactor: Reactor, sink: Sink) -> None:
        self.peer = peer
        self.number = number
        self.reactor = reactor
        self.sink = sink
        self.streams: list[IncomingStream] = []
        self.is_closed = False
        #: Small operations that the sender has not been told of.
        self._to_grant: dict[TransferKey, Transfer] = {}

    def add(self, sock: DataSocket) -> None:
        """Read one more stream; it learns what is posted already.

        The sender may dial it because it has lost another, with a grant on it, and that end is
        not known here.
        """
        stream = IncomingStream(self, sock)
        self.streams.append(stream)
        self.reactor.watch(stream, READ)
        self._grant_all()

    def _grant_all(self) -> None:
        for transfer in self.sink.transfers_in_flight():
            self.grant(transfer)

    def grant(self, transfer: Transfer) -> None:
        """Tell the sender that an operation is posted.

        All of a small one is mostly sent unasked, and here before the grant would be: that
        waits for a pause, and is not sent if the operation has ended by then.
        """
        self._to_grant[transfer.key] = transfer
        if transfer.is_small:
            self.reactor.defer(self._send_grants, until_pause=True)
        else:
            self._send_grants()

    def _send_grants(self) -> None:
        if not self._to_grant or not self.streams:
            return
        grants = b"".join(
            SegmentHeader(SegmentKind.GRANT, t.generation, *t.key, t.signature, 0, 0, 0).pack()
            for t in self._to_grant.values()
        )
        self._to_grant.clear()
        self.streams[-1].reply(grants)  # what is half-open is older

    def resume(self) -> None:
        """A generation is open: its data may be read."""
        try:
            for stream in list(self.streams):
                stream.resume()
        except WireError as error:
            self.on_broken(str(error))

    def release(self, transfer: Transfer) -> None:
        """Let go of a transfer's memory: payloads under way are thrown away."""
        if self._to_grant.get(transfer.key) is transfer:
            del self._to_grant[transfer.key]
        for stream in self.streams:
            stream.release(transfer)

    def discard_others(self, first: "IncomingStream", transfer: Transfer) -> None:
        """A segment is here: what other streams still read of it is thrown away."""
        for stream in self.streams:
            if (
                stream.transfer is transfer
                and stream is not first
                and stream.header is not None
                and not transfer.expects(stream.header)
            ):
                stream.release(transfer)

    def sweep(self, now: float) -> bool:
        """Acknowledge what was received; tell whether a stream waits for its generation."""
        is_holding = False
        for stream in list(self.streams):
            stream.acknowledge()
            is_holding |= stream.maybe_hold(now)
        return is_holding

    def on_stream_ended(self, stream: "IncomingStream", reason: str) -> None:
        """The sender sends again what it carried; without streams the link is broken."""
        if self.is_closed or stream not in self.streams:
            return
        self._drop(stream)
        if not self.streams:
            self.on_broken(reason)
        else:
            self._grant_all()  # a grant may have been lost with it

    def _drop(self, stream: "IncomingStream") -> None:
        self.streams.remove(stream)
        self.reactor.forget(stream)
        stream.sock.close()
        self.sink.drop_partial(stream)

    def on_broken(self, reason: str) -> None:
        """The link is of no use any more."""
        if not self.is_closed:
            self.sink.on_incoming_broken(self, reason)

    def close(self) -> None:
        """Close all streams."""
        self.is_closed = True
        for stream in list(self.streams):
            self._drop(stream)


class IncomingStream:
    """One TCP stream from the previous rank."""

    def __init__(self, link: IncomingLink, sock: DataSocket) -> None:
        self.link = link
        self.sock = sock
        self._sink = link.sink
        self.scratch = np.empty(PAYLOAD_BYTES_MAX, np.uint8).data  # pages come as they are used
        #: Where the payload under way goes.
        self.payload = self.scratch
        #: For which transfer, straight to its memory or not; or kept, as nobody has posted it.
        self.transfer: Transfer | None = None
        self.is_placed = False
        self.eager: memoryview | None = None
        #: What that takes of what may be early.
        self.eager_cost = 0
        self._rest = self.payload
        self.header: SegmentHeader | None = None
        self._header_bytes = bytearray(HEADER_BYTES)
        self._header_view = memoryview(self._header_bytes)
        self._header_filled = 0
        self._is_paused = False
        self._held_at = 0.0
        self._received_count = 0
        self._reported_count = 0
        self._unreported_bytes = 0
        self._replies = bytearray()

    # -- reading --------------------------------------------------------------------------------

    def on_ready(self, mask: int) -> None:
        """Read what is there; write replies that wait."""
        try:
            if mask & WRITE:
                self._flush()
            if mask & READ and not self._is_paused:
                self._read()
        except StreamEnded as error:
            self.link.on_stream_ended(self, str(error))
        except WireError as error:
            self.link.on_broken(str(error))

    def _read(self) -> None:
        if self.header is None:
            self._header_filled += self.sock.receive_nowait(
                (self._header_view[self._header_filled :],)
            )
            if self._header_filled < HEADER_BYTES or not self._start():
                return
        for _ in range(_SEGMENTS_PER_TURN):
            rest = self._rest  # the next header comes in the same call
            count = self.sock.receive_nowait((rest, self._header_view))
            left = len(rest) - count
            if left > 0:
                self._rest = rest[count:]
                self.sock.set_low_water(min(left, limits.RECEIVE_LOW_WATER_BYTES))
                return
            self._header_filled = -left
            self._finish()
            if self.sock.is_closed:
                return
            if self._header_filled < HEADER_BYTES:
                self.sock.set_low_water(1)
                return
            if not self._start():
                return

    def _start(self) -> bool:
        """Read a header; False if its generation is not open yet."""
        header = unpack_header(self._header_bytes)
        if header.kind in REVERSE_KINDS:
            raise WireError(f"{header.kind.name} came in the direction of the ring")
        self.header = header
        if header.generation > self._sink.generation:
            self._is_paused = True
            self._held_at = 0.0
            self.sock.set_low_water(1)  # its payload may be smaller than those before it
            self._sink.on_under_way()
            self._watch()
            return False
        self._place(header)
        return True

    def _place(self, header: SegmentHeader) -> None:
        self.payload = self.scratch
        self._sink.place(self, header)
        self.payload = self._rest = self.payload[: header.payload_bytes]

    def _finish(self) -> None:
        header = self.header
        assert header is not None
        self.header = None
        self._sink.accept(self, header)
        self.transfer = None
        self.eager = None
        self.eager_cost = 0
        self.is_placed = False
        self.payload = self._rest = self.scratch
        if self._unreported_bytes == 0:
            self._sink.on_under_way()
        self._received_count = (self._received_count + 1) & _COUNT_MASK
        self._unreported_bytes += header.payload_bytes
        if (
            self._unreported_bytes >= limits.ACKNOWLEDGE_BYTES
            or (self._received_count - self._reported_count) & _COUNT_MASK
            >= limits.ACKNOWLEDGE_SEGMENTS
        ):
            self.acknowledge()

    def resume(self) -> None:
        """Go on if the generation that the stream waits for is open."""
        if self._is_paused and self.header is not None:
            if self.header.generation > self._sink.generation:
                return
            self._is_paused = False
            self._place(self.header)
            self._watch()

    def _watch(self) -> None:
        reading = 0 if self._is_paused else READ
        self.link.reactor.watch(self, reading | (WRITE if self._replies else 0))

    def release(self, transfer: Transfer) -> None:
        """Throw away the rest of a payload whose transfer ended."""
        if self.transfer is transfer:
            self.transfer = None
            self.is_placed = False
            self._rest = self.scratch[: len(self._rest)]
            self.payload = self.scratch[: len(self.payload)]

    # -- replies --------------------------------------------------------------------------------

    def acknowledge(self) -> None:
        """Say how many segments are here."""
        if self._received_count == self._reported_count:
            return
        self._reported_count = self._received_count
        self._unreported_bytes = 0
        header = SegmentHeader(SegmentKind.ACK, 0, 0, 0, 0, 0, self._received_count, 0)
        self.reply(header.pack())

    def maybe_hold(self, now: float) -> bool:
        """Tell the sender, again and again, that its generation is not open here yet.

        Else it would think that the link has stalled. False if that is not so.
        """
        if not self._is_paused or self.header is None or self.sock.is_closed:
            return False
        if now - self._held_at >= limits.HOLD_INTERVAL_S:
            self._held_at = now
            generation = self.header.generation
            self.reply(SegmentHeader(SegmentKind.HOLD, generation, 0, 0, 0, 0, 0, 0).pack())
        return True

    def reply(self, data: bytes) -> None:
        """Write against the direction of the ring; what does not go at once waits."""
        if self.sock.is_closed:
            return
        if len(self._replies) > limits.REPLIES_BYTES_MAX:
            self.link.on_stream_ended(self, "the sender does not read what it is told")
            return
        self._replies += data
        try:
            self._flush()
        except StreamEnded as error:
            self.link.on_stream_ended(self, str(error))

    def _flush(self) -> None:
        while self._replies:
            sent = self.sock.send_nowait((bytes(self._replies),))
            if sent == 0:
                break
            del self._replies[:sent]
        self._watch()
