"""One attempt of an all-reduce on one rank: what arrives is reduced, stored and passed on.

Executes a `RingPlan`. Every segment is placed and added at most once. Decides nothing about
streams or verdicts, and never waits.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringhaul.ids import CallId, Generation, OpKey, Rank, ReduceOp
from ringhaul.ring.plan import Phase, plan_ring
from ringhaul.ring.reduce import Kernel
from ringhaul.wire.records import Signature
from ringhaul.wire.segment_header import SegmentHeader, SegmentKind, WireKey

TransferKey = tuple[int, int]  # tag hash, ordinal

_PHASES = {
    SegmentKind.REDUCE_SCATTER: Phase.REDUCE_SCATTER,
    SegmentKind.ALL_GATHER: Phase.ALL_GATHER,
}


def as_bytes(array: NDArray[Any]) -> memoryview:
    """The memory of a contiguous one-dimensional array; works for bfloat16 too."""
    return array.view(np.uint8).data if array.size else memoryview(b"")


class Segment:
    """A segment that is ready to be sent."""

    __slots__ = ("header", "transfer", "view")

    def __init__(self, header: bytes, view: memoryview, transfer: "RingTransfer") -> None:
        self.header = header
        self.view = view
        self.transfer = transfer


class RingTransfer:
    """Moves one array around the ring.

    Args:
        own: shape (n,), this rank's values; only read.
        result: shape (n,), the same dtype; written while data arrive. May not be `own`.
    """

    def __init__(
        self,
        *,
        call: CallId,
        key: OpKey,
        generation: Generation,
        rank: Rank,
        world_size: int,
        signature: Signature,
        own: NDArray[Any],
        result: NDArray[Any],
    ) -> None:
        self.call = call
        self.generation = generation
        wire_key = WireKey(key)
        self.key: TransferKey = (wire_key.tag_hash, wire_key.ordinal)
        self.signature = zlib.crc32(str(signature).encode())
        self._kernel = Kernel(signature.op or ReduceOp.SUM, own.dtype, world_size)
        wide = self._kernel.accumulate_dtype
        self.plan = plan_ring(rank, world_size, own.size, wide.itemsize)
        self._own = own
        self._result = result
        self._partial = np.empty(own.size, wide) if self._kernel.is_widening else result
        self._places: dict[tuple[SegmentKind, int, int, int], tuple[int, int, int]] = {}
        self._received = bytearray(self.plan.bitmap_size)
        self._missing_count = self.plan.expected_segment_count
        self.sent_bytes = 0
        self.received_bytes = 0

    @property
    def is_done(self) -> bool:
        """All that this rank receives is here."""
        return self._missing_count == 0

    def first_segments(self) -> Iterator[Segment]:
        """What this rank sends unasked: its own values of one chunk."""
        if self.plan.world_size == 1:
            np.copyto(self._result, self._own)
            return
        chunk = self.plan.first_chunk
        for index in range(self.plan.segment_count(chunk)):
            start, stop = self.plan.segment_bounds(chunk, index)
            values = self._own[start:stop]
            if self._kernel.is_widening:
                self._kernel.widen(values, self._partial[start:stop])
                values = self._partial[start:stop]
            yield self._segment(SegmentKind.REDUCE_SCATTER, chunk, index, values)

    def _segment(self, kind: SegmentKind, chunk: int, index: int, values: NDArray[Any]) -> Segment:
        view = as_bytes(values)
        header = SegmentHeader(
            kind,
            self.generation,
            self.key[0],
            self.key[1],
            self.signature,
            chunk,
            index,
            len(view),
        )
        self.sent_bytes += len(view)
        return Segment(header.pack(), view, self)

    def expects(self, header: SegmentHeader) -> bool:
        """Does the segment fit the plan, and is it not here yet?"""
        if header.signature != self.signature:
            return False
        place = self._place_of(header)
        return place is not None and not self._received[place[2]]

    def _place_of(self, header: SegmentHeader) -> tuple[int, int, int] | None:
        """First element, end, and bit of a segment; None if the plan has no such segment."""
        at = (header.kind, header.chunk, header.segment, header.payload_bytes)
        found = self._places.get(at)
        if found is None:
            phase = _PHASES[header.kind]
            if not self.plan.receives_segment(phase, header.chunk, header.segment):
                return None
            start, stop = self.plan.segment_bounds(header.chunk, header.segment)
            dtype = self._partial.dtype if phase is Phase.REDUCE_SCATTER else self._result.dtype
            if header.payload_bytes != (stop - start) * dtype.itemsize:
                return None
            bit = self.plan.segment_index(phase, header.chunk, header.segment)
            self._places.clear()  # asked for several times in a row, then never again
            found = self._places[at] = (start, stop, bit)
        return found

    def place(self, header: SegmentHeader) -> memoryview | None:
        """Where the payload may be read to directly; None: into scratch first."""
        if header.kind is not SegmentKind.ALL_GATHER:
            return None
        place = self._place_of(header)
        assert place is not None
        return as_bytes(self._result[place[0] : place[1]])

    def accept(self, header: SegmentHeader, payload: memoryview | None) -> Segment | None:
        """Take a segment that is whole; return what is to be passed on.

        `payload` is None if it was read to where `place` said.
        """
        place = self._place_of(header)
        if place is None or self._received[place[2]]:
            return None  # came twice
        start, stop, bit = place
        phase = _PHASES[header.kind]
        chunk, index = header.chunk, header.segment
        self._received[bit] = 1
        self._missing_count -= 1
        self.received_bytes += header.payload_bytes
        if phase is Phase.ALL_GATHER:
            result = self._result[start:stop]
            if payload is not None:
                as_bytes(result)[:] = payload
            if not self.plan.passes_on(phase, chunk):
                return None
            return self._segment(SegmentKind.ALL_GATHER, chunk, index, result)
        assert payload is not None
        received = np.frombuffer(payload, dtype=np.uint8).view(self._partial.dtype)
        own = self._own[start:stop]
        if chunk == self.plan.owned_chunk:
            result = self._result[start:stop]
            self._kernel.finish(received, own, result)
            return self._segment(SegmentKind.ALL_GATHER, chunk, index, result)
        partial = self._partial[start:stop]
        self._kernel.combine(received, own, partial)
        return self._segment(SegmentKind.REDUCE_SCATTER, chunk, index, partial)
