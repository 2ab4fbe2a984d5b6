"""Serving blocks of the elected state to those who differ: by holders, and among requesters.

Decides which of the blocks asked for leaves next, and whether compressing it pays. What may be
served is in a `Stage`: the caller's own memory or verified blocks, and only while its call is
open.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import trio

from ringhaul import limits
from ringhaul.errors import WireError
from ringhaul.io.sockets import DataSocket, StreamEnded
from ringhaul.quant.compression import Compressor
from ringhaul.state.content import Stage
from ringhaul.wire.codec import Envelope
from ringhaul.wire.coordinator_messages import SyncPlan
from ringhaul.wire.peer_messages import StateOffer, StateRequest
from ringhaul.wire.state_records import RECORD_BYTES, Kind, Packing, StateRecord

#: Requests that may wait on one connection: whoever asks more does not mind the answers.
_REQUESTS_MAX = 4 * limits.STATE_WINDOW_BLOCKS_MAX
#: One write under an upload budget, and one piece of a list of digests.
_PIECE_BYTES = 128 * 1024
_PIECE_BYTES_MIN = 1024
_PIECE_S = 0.05
#: Compression is tried on links slower than this; about 1 ms per MiB would have to be saved.
_COMPRESSED_RATE_MAX = 200e6
#: ... and when the kernel has had so many blocks to measure the link with.
_BLOCKS_MEASURED_MIN = 4
#: Blocks that leave in one go, if they are small.
_BLOCKS_AT_ONCE = 64


class Pacer:
    """An upload budget: who pays for bytes waits until they may leave."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0

    @property
    def bytes_per_s(self) -> float:
        """The budget."""
        return math.inf if self._bytes_per_s is None else self._bytes_per_s

    @property
    def piece_bytes(self) -> int:
        """What may leave at once, so that nobody waits long for a turn."""
        return int(max(_PIECE_BYTES_MIN, min(_PIECE_BYTES, self.bytes_per_s * _PIECE_S)))

    async def pay(self, byte_count: int) -> None:
        """Wait for this turn; turns are taken in the order of the calls."""
        if self._bytes_per_s is not None:
            start_at = max(self._free_at, trio.current_time())
            self._free_at = start_at + byte_count / self._bytes_per_s
            await trio.sleep_until(start_at)


@dataclass(eq=False)
class Served:
    """The state of one open `sync_state`."""

    plan: SyncPlan
    stage: Stage
    pacer: Pacer
    sent_bytes: int = 0
    connections: set["_Connection"] = field(default_factory=set)

    def announce(self) -> None:
        """More blocks are here."""
        for connection in self.connections:
            connection.wake()


class StateServer:
    """Answers requests for the states that open `sync_state` calls have."""

    def __init__(self) -> None:
        self._served: dict[tuple[int, object], Served] = {}
        self._changed = trio.Event()

    def serve(self, plan: SyncPlan, stage: Stage, upload_bytes_per_s: float | None) -> Served:
        """Serve what is in `stage` until `end`."""
        served = Served(plan, stage, Pacer(upload_bytes_per_s))
        self._served[plan.generation, plan.key] = served
        self._changed.set()
        self._changed = trio.Event()
        return served

    def end(self, plan: SyncPlan) -> None:
        """The call is over: its arrays are the caller's again."""
        served = self._served.pop((plan.generation, plan.key), None)
        if served is not None:
            for connection in served.connections:
                connection.scope.cancel()

    async def find(self, request: StateRequest) -> Served | None:
        """Wait until the requested state is served here; None if the token is wrong.

        The caller bounds the wait.
        """
        at = (request.generation, request.key)
        while at not in self._served:
            await self._changed.wait()
        served = self._served[at]
        asked = (request.requester, request.token)
        return served if asked in [(t.peer, t.token) for t in served.plan.requesters] else None

    async def answer(self, request: StateRequest, served: Served, sock: DataSocket) -> None:
        """Give what is asked for, as long as the call lasts and the requester takes it.

        Raises:
            StreamEnded: the connection ended, or the requester broke the rules.
        """
        at = (served.plan.generation, served.plan.key)
        if self._served.get(at) is not served:
            return
        proof = next(t.proof for t in served.plan.requesters if t.peer == request.requester)
        offer = StateOffer(proof=proof, block_count=served.stage.layout.block_count)
        connection = _Connection(served, sock)
        served.connections.add(connection)
        ended: Exception | None = None
        try:
            with connection.scope:
                await sock.send_message(Envelope(message=offer))
                sock.tune()
                await connection.run()
        except* StreamEnded as group:
            ended = group.exceptions[0]
        finally:
            served.connections.discard(connection)
        if ended is not None:  # raised above, Python before 3.11.4 would wrap it in a group
            raise ended


class _Connection:
    """One requester's connection."""

    def __init__(self, served: Served, sock: DataSocket) -> None:
        self.scope = trio.CancelScope()
        self._served = served
        self._stage = served.stage
        self._sock = sock
        self._requests: deque[StateRecord] = deque()
        self._wake = trio.Event()
        #: How many of the blocks that arrived have been announced; -1: nothing yet.
        self._announced = -1
        self._compressor = Compressor(clock=sock.system.clock)
        self._blocks_sent = 0

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    async def run(self) -> None:
        """Serve until cancelled, or the connection ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read)
            nursery.start_soon(self._write)

    async def _read(self) -> None:
        while True:
            data = await self._sock.receive_exactly(RECORD_BYTES)
            try:
                record = StateRecord.decode(data)
            except WireError as error:
                raise StreamEnded(str(error)) from None
            block_count = self._stage.layout.block_count
            if record.kind not in (Kind.WANT, Kind.WANT_LIST):
                raise StreamEnded(f"a requester sends {record.kind.name}")
            if record.kind is Kind.WANT and not (
                0 < record.count <= block_count and record.index <= block_count - record.count
            ):
                raise StreamEnded(f"asks for blocks {record.index} to {record.count} more")
            if len(self._requests) >= _REQUESTS_MAX:
                raise StreamEnded("asks for more than it takes")
            self._requests.append(record)
            self.wake()

    async def _write(self) -> None:
        while True:
            await self._announce()
            if not self._requests:
                if self._announced < len(self._stage.arrived):
                    continue
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            record = self._requests.popleft()
            if record.kind is Kind.WANT_LIST:
                await self._send_list()
                continue
            await self._send_run(range(record.index, record.index + record.count))

    async def _announce(self) -> None:
        arrived = self._stage.arrived
        if self._announced == len(arrived):
            return
        count = self._stage.layout.block_count
        if self._announced < 0:
            runs = _runs(index for index in range(count) if self._stage.is_here(index))
        else:
            runs = _runs(sorted(arrived[self._announced :]))
        self._announced = len(arrived)
        records = [StateRecord(Kind.HAVE, first, length).encode() for first, length in runs]
        await self._send([b"".join(records)])

    async def _send_list(self) -> None:
        digests = memoryview(self._stage.elected_digests)
        for start in range(0, len(digests), _PIECE_BYTES):
            piece = digests[start : start + _PIECE_BYTES]
            head = StateRecord(Kind.LIST, start, len(piece)).encode()
            await self._served.pacer.pay(len(piece))
            await self._send([head, piece])

    async def _send_run(self, indices: range) -> None:
        """Send blocks that were asked for together, several in one go where nothing is gained."""
        while indices:
            if not self._stage.is_here(indices[0]):
                raise StreamEnded(f"asks for block {indices[0]}, which is not here")
            rate = self._rate()
            together = 1
            if rate < _COMPRESSED_RATE_MAX or self._served.pacer.bytes_per_s < math.inf:
                await self._send_paced(indices[0], rate)
            else:
                together = self._together(indices)
                await self._send_blocks(indices[:together])
            indices = indices[together:]
            await self._announce()

    def _together(self, indices: range) -> int:
        """How many of the first blocks, which are here, leave in one go."""
        count = size = 0
        for index in indices[:_BLOCKS_AT_ONCE]:
            size += self._stage.layout.size(index)
            if count and (size > limits.STATE_REQUEST_BYTES or not self._stage.is_here(index)):
                break
            count += 1
        return count

    def _rate(self) -> float:
        """What the link or the budget takes, bytes per second; infinity if it is not known."""
        budget = self._served.pacer.bytes_per_s
        if self._blocks_sent < _BLOCKS_MEASURED_MIN:
            return budget
        info = self._sock.tcp_info()
        measured = info.delivery_bytes_per_s if info is not None else 0.0
        return min(measured or math.inf, budget)

    async def _send_blocks(self, indices: range) -> None:
        buffers: list[bytes | memoryview] = []
        for index in indices:
            block = self._stage.block(index)
            buffers += [StateRecord(Kind.BLOCK, index, len(block)).encode(), block]
        await self._send(buffers, block_bytes=sum(map(len, buffers[1::2])))
        self._blocks_sent += len(indices)

    async def _send_paced(self, index: int, rate: float) -> None:
        """Send a block, compressed if that takes less time, within the budget."""
        block = self._stage.block(index)
        packed = await self._maybe_compress(index, block, rate)
        packing = Packing.PLAIN if packed is None else Packing.ZSTD
        payload = block if packed is None else packed
        head = StateRecord(Kind.BLOCK, index, len(payload), packing).encode()
        pacer = self._served.pacer
        if pacer.bytes_per_s < math.inf:
            await self._send([head])
            for start in range(0, len(payload), pacer.piece_bytes):
                piece = payload[start : start + pacer.piece_bytes]
                await pacer.pay(len(piece))
                await self._send([piece], block_bytes=len(piece))
        else:
            await self._send([head, payload], block_bytes=len(payload))
        self._blocks_sent += 1

    async def _maybe_compress(
        self, index: int, block: memoryview, rate: float
    ) -> memoryview | None:
        """The compressed block, if sending it takes less time, compressing included."""
        is_measured = self._blocks_sent >= _BLOCKS_MEASURED_MIN
        if not is_measured or rate >= _COMPRESSED_RATE_MAX or len(block) < _PIECE_BYTES:
            return None
        self._compressor.link_bytes_per_s = rate
        word_bytes = self._stage.layout.word_bytes(index)
        plain = np.frombuffer(block, np.uint8)
        packed = await self._sock.system.run_in_thread(self._compressor.shorter, plain, word_bytes)
        return None if packed is None else memoryview(packed)

    async def _send(self, buffers: list[bytes | memoryview], block_bytes: int = 0) -> None:
        """Write all of it; a requester that takes nothing for long is left.

        `block_bytes` of it count as given: at once, since with the last of them the call may
        end before this task runs again. It may end, too, when this task has been woken and has
        not run yet: the memory is the caller's again then, and nothing of it is read.
        """
        views = [memoryview(buffer) for buffer in buffers if len(buffer)]
        while views:
            await trio.lowlevel.checkpoint_if_cancelled()
            sent = self._sock.send_nowait(views)
            while views and sent >= len(views[0]):
                sent -= len(views[0])
                del views[0]
            if not views:
                self._served.sent_bytes += block_bytes
                await trio.lowlevel.checkpoint()
                return
            views[0] = views[0][sent:]
            with trio.move_on_after(limits.SILENCE_IDLE_S) as scope:
                await self._sock.wait_writable()
            if scope.cancelled_caught:
                raise StreamEnded(f"took nothing for {limits.SILENCE_IDLE_S:g} s")


def _runs(indices: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First number and length of each run of numbers that follow on each other."""
    first = count = 0
    for index in indices:
        if count and index == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = index, 1
    if count:
        yield first, count
