"""Data links: several TCP streams to the next rank, several from the previous.

Whichever stream is free takes the next ready segment. Reading never waits for writing. A
sender may have `EAGER_BYTES_MAX` under way for operations the receiver has not posted; the
receiver's grant, on the same connection the other way, lifts that for one operation.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

import trio

from ringhaul.errors import WireError
from ringhaul.ids import Generation, PeerId
from ringhaul.io.ring_transfer import RingTransfer, Segment, TransferKey
from ringhaul.io.sockets import DataSocket, StreamEnded
from ringhaul.io.transfer import Transfer
from ringhaul.limits import EAGER_BYTES_MAX, OPEN_OPERATIONS_MAX, RECEIVE_LOW_WATER_BYTES
from ringhaul.wire.segment_header import (
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    SegmentHeader,
    SegmentKind,
    unpack_header,
)

#: Grants kept for operations not begun here; the oldest are of operations long done.
_GRANTS_MAX = 2 * OPEN_OPERATIONS_MAX

Broken = Callable[["OutgoingLink | IncomingLink", str], None]


class OutgoingLink:
    """The way to the next rank: a queue of ready segments, and the streams that take them."""

    def __init__(self, peer: PeerId, socks: list[DataSocket], broken: Broken) -> None:
        self.peer = peer
        self.generation = Generation(0)
        self._broken = broken
        self._queues: OrderedDict[TransferKey, deque[Segment]] = OrderedDict()
        self._granted: OrderedDict[tuple[int, TransferKey], None] = OrderedDict()
        self._eager: dict[TransferKey, int] = {}
        self._work = trio.lowlevel.ParkingLot()
        self.streams = [OutgoingStream(self, sock) for sock in socks]
        self.is_closed = False

    def start(self, nursery: trio.Nursery) -> None:
        """Run the streams."""
        for stream in self.streams:
            nursery.start_soon(self._guard, stream.run_writer)
            nursery.start_soon(self._guard, stream.run_reader)

    async def _guard(self, run: Callable[[], object]) -> None:
        try:
            await run()  # type: ignore[misc]
        except (StreamEnded, WireError) as error:
            if not self.is_closed:
                self._broken(self, str(error))

    def use(self, generation: Generation) -> None:
        """A generation is open: forget what older ones had under way."""
        self.generation = generation
        self._queues.clear()
        self._eager.clear()
        for grant in [g for g in self._granted if g[0] < generation]:
            del self._granted[grant]

    def enqueue(self, segment: Segment) -> None:
        """Have a segment sent by the next free stream."""
        self._queues.setdefault(segment.transfer.key, deque()).append(segment)
        self._work.unpark()

    def take(self) -> Segment | None:
        """The next segment that may be sent; operations take turns."""
        for key in list(self._queues):
            queue = self._queues[key]
            if not queue:
                continue
            if (self.generation, key) not in self._granted:
                size = len(queue[0].view)
                if sum(self._eager.values()) + size > EAGER_BYTES_MAX:
                    continue
                self._eager[key] = self._eager.get(key, 0) + size
            self._queues.move_to_end(key)
            return queue.popleft()
        return None

    async def wait_work(self) -> None:
        """Wait until there may be something to send."""
        await self._work.park()

    def on_grant(self, header: SegmentHeader) -> None:
        """The receiver has posted an operation."""
        if header.generation < self.generation:
            return
        key = (header.tag_hash, header.ordinal)
        self._granted[header.generation, key] = None
        while len(self._granted) > _GRANTS_MAX:
            self._granted.popitem(last=False)
        if header.generation == self.generation:
            self._eager.pop(key, None)
        self._work.unpark_all()

    def release(self, transfer: RingTransfer) -> None:
        """Let go of a transfer's memory; what a stream is in the middle of is copied."""
        self._queues.pop(transfer.key, None)
        self._granted.pop((transfer.generation, transfer.key), None)
        self._eager.pop(transfer.key, None)
        for stream in self.streams:
            stream.release(transfer)

    def close(self) -> None:
        """Close all streams."""
        self.is_closed = True
        for stream in self.streams:
            stream.sock.close()
        self._work.unpark_all()


class OutgoingStream:
    """One TCP stream to the next rank."""

    def __init__(self, link: OutgoingLink, sock: DataSocket) -> None:
        self.link = link
        self.sock = sock
        self._transfer: Transfer | None = None
        self._header = memoryview(b"")
        self._view = memoryview(b"")

    async def run_writer(self) -> None:
        """Send segments until the stream ends: header and payload leave in one call."""
        while not self.link.is_closed:
            segment = self.link.take()
            if segment is None:
                await self.link.wait_work()
                continue
            self._transfer = segment.transfer
            self._header = memoryview(segment.header)
            self._view = segment.view
            await self._send()
            self._transfer = None
            self._view = memoryview(b"")

    async def _send(self) -> None:
        while self._header or self._view:
            sent = self.sock.send_nowait([self._header, self._view])
            if not sent:
                await self.sock.wait_writable()
                continue
            in_header = min(sent, len(self._header))
            self._header = self._header[in_header:]
            self._view = self._view[sent - in_header :]
        await trio.lowlevel.cancel_shielded_checkpoint()

    def release(self, transfer: RingTransfer) -> None:
        """Swap the caller's memory for a copy of what has to be sent yet."""
        if self._transfer is transfer:
            self._view = memoryview(bytes(self._view))
            self._transfer = None

    async def run_reader(self) -> None:
        """Read grants; notice the end of the stream at once."""
        while True:
            header = unpack_header(await self.sock.receive_exactly(HEADER_BYTES))
            if header.kind is not SegmentKind.GRANT:
                raise WireError("data came against the direction of the ring")
            self.link.on_grant(header)


class Sink(Protocol):
    """Where incoming segments go: the data plane."""

    async def wait_generation(self, generation: int) -> None:
        """Wait until `generation` is open here."""

    def place(self, stream: "IncomingStream", header: SegmentHeader) -> None:
        """Give the stream the memory for a payload."""

    def accept(self, stream: "IncomingStream", header: SegmentHeader) -> None:
        """Take a payload that is whole."""


class IncomingLink:
    """The way from the previous rank."""

    def __init__(self, peer: PeerId, number: int, sink: Sink, broken: Broken) -> None:
        self.peer = peer
        self.number = number
        self.address_host = ""
        self._sink = sink
        self._broken = broken
        self._grants: deque[bytes] = deque()
        self._work = trio.lowlevel.ParkingLot()
        self.streams: list[IncomingStream] = []
        self.is_closed = False

    def add(self, sock: DataSocket, nursery: trio.Nursery) -> None:
        """Run one more stream; the first also carries the grants back."""
        stream = IncomingStream(sock, self._sink)
        self.streams.append(stream)
        self.address_host = sock.peer_host()
        nursery.start_soon(self._guard, stream.run)
        if len(self.streams) == 1:
            nursery.start_soon(self._guard, self._send_grants)

    async def _guard(self, run: Callable[[], object]) -> None:
        try:
            await run()  # type: ignore[misc]
        except (StreamEnded, WireError) as error:
            if not self.is_closed:
                self._broken(self, str(error))

    def grant(self, transfer: RingTransfer) -> None:
        """Tell the sender that an operation is posted."""
        header = SegmentHeader(
            SegmentKind.GRANT, transfer.generation, *transfer.key, transfer.signature, 0, 0, 0
        )
        self._grants.append(header.pack())
        self._work.unpark()

    async def _send_grants(self) -> None:
        while not self.is_closed:
            if self._grants:
                await self.streams[0].sock.send_all(self._grants.popleft())
            else:
                await self._work.park()

    def release(self, transfer: RingTransfer) -> None:
        """Let go of a transfer's memory: payloads under way are thrown away."""
        for stream in self.streams:
            stream.release(transfer)

    def close(self) -> None:
        """Close all streams."""
        self.is_closed = True
        for stream in self.streams:
            stream.sock.close()
        self._work.unpark_all()


class IncomingStream:
    """One TCP stream from the previous rank."""

    def __init__(self, sock: DataSocket, sink: Sink) -> None:
        self.sock = sock
        self._sink = sink
        self.scratch = memoryview(bytearray(PAYLOAD_BYTES_MAX))
        #: Where the payload under way goes, and for which transfer; None: thrown away or kept.
        self.view = self.scratch
        self.transfer: RingTransfer | None = None
        self.eager: memoryview | None = None

    async def run(self) -> None:
        """Read segments until the stream ends."""
        while True:
            header = unpack_header(await self.sock.receive_exactly(HEADER_BYTES))
            if header.kind is SegmentKind.GRANT:
                raise WireError("a grant came in the direction of the ring")
            await self._sink.wait_generation(header.generation)
            self._sink.place(self, header)
            filled = 0
            while filled < header.payload_bytes:
                count = self.sock.receive_nowait(self.view[filled : header.payload_bytes])
                filled += count
                if count == 0:
                    left = header.payload_bytes - filled
                    await self.sock.wait_received(min(left, RECEIVE_LOW_WATER_BYTES))
            self._sink.accept(self, header)
            self.transfer = None
            self.eager = None
            self.view = self.scratch
            await trio.lowlevel.checkpoint()

    def release(self, transfer: RingTransfer) -> None:
        """Throw away the rest of a payload whose transfer ended."""
        if self.transfer is transfer:
            self.transfer = None
            self.view = self.scratch
