"""One attempt of a ring collective on one rank: what arrives is reduced, stored, passed on.

Executes a `RingPlan`, whichever collective it is of. Every segment is placed and added at
most once. Decides nothing about streams or verdicts, and never waits.
"""

import sys
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ringhaul import limits
from ringhaul.ids import CallId, Generation, OpKey, Rank
from ringhaul.io.transfer import Segment, Transfer, TransferKey, as_bytes
from ringhaul.ring import plan as plans
from ringhaul.ring.plan import Phase, RingPlan, plan_ring
from ringhaul.ring.reduce import Kernel
from ringhaul.wire.records import CollectiveKind, Signature
from ringhaul.wire.segment_header import SegmentHeader, SegmentKind, WireKey, pack_header

__all__ = ["RingTransfer", "Segment", "Transfer", "TransferKey", "as_bytes"]

_PHASES = {
    SegmentKind.REDUCE_SCATTER: Phase.REDUCE_SCATTER,
    SegmentKind.ALL_GATHER: Phase.ALL_GATHER,
}
_KINDS = {phase: kind for kind, phase in _PHASES.items()}
_PHASES_OF = {
    CollectiveKind.ALL_REDUCE: plans.ALL_REDUCE,
    CollectiveKind.REDUCE_SCATTER: plans.REDUCE_SCATTER,
    CollectiveKind.ALL_GATHER: plans.ALL_GATHER,
    CollectiveKind.BROADCAST: plans.ALL_GATHER,
}


@lru_cache(maxsize=1024)
def _short(signature: Signature) -> int:
    """What headers carry of a signature."""
    return zlib.crc32(str(signature).encode())


class Chunk(NamedTuple):
    """What is the same for all segments of a chunk in a phase that this rank receives."""

    start: int
    stop: int
    #: Number of its first segment in the bitmap, and of the first that is not of it.
    bit: int
    bit_stop: int
    itemsize: int
    phase: Phase
    #: Whether the next rank is sent what comes of a segment, and as what.
    passes_on: bool
    next_kind: SegmentKind
    #: The reduction of its segments ends here.
    is_final: bool


Chunks = dict[tuple[SegmentKind, int], Chunk]


class Found(NamedTuple):
    """Where a segment, or a run of segments side by side, belongs."""

    start: int
    stop: int
    #: Numbers in the bitmap: of the first, and of the first after it that is not of it.
    bit: int
    bit_stop: int


@lru_cache(maxsize=256)  # training loops reduce the same arrays again and again
def _layout(
    rank: Rank,
    world_size: int,
    count: int,
    wide_itemsize: int,
    itemsize: int,
    phases: tuple[Phase, ...],
    root: Rank | None,
) -> tuple[RingPlan, Chunks]:
    """The plan, and its chunks as they are first asked for: all that they depend on is here."""
    return plan_ring(rank, world_size, count, wide_itemsize, phases, root), {}


class RingTransfer:
    """Moves arrays around the ring. Who runs it switches floating-point warnings off.

    Args:
        own: of one dimension, this rank's values; only read. All ranks have as many. Only the
            dtype and size of it matter where a broadcast comes from another rank.
        result: of one dimension, with `RingPlan.result_bounds` elements of the same dtype;
            written while data arrive; allocated if it is None. It may be `own` only where
            nothing is written: at the root of a broadcast.
        root: the rank that a broadcast starts from.
    """

    #: Whether adjacent segments may travel as one: not where each is packed by itself.
    may_run: ClassVar[bool] = True
    _run_segments = 1
    #: What packed segments that this rank sends take, and would take as they are.
    _packed_bytes = _plain_bytes = 0
    #: The last segment that was asked for: it is, several times in a row.
    _header: SegmentHeader | None = None
    _found: Found | None = None

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
        result: NDArray[Any] | None = None,
        root: Rank | None = None,
    ) -> None:
        self.call = call
        self.generation = generation
        wire_key = WireKey(key)
        self.key: TransferKey = (wire_key.tag_hash, wire_key.ordinal)
        self.signature = _short(signature)
        self._kernel: Kernel | None = None
        wide = own.dtype
        if signature.op is not None:
            self._kernel = Kernel(signature.op, own.dtype, world_size)
            wide = self._kernel.accumulate_dtype
        self._wide = wide
        #: Without a cast or a division the bare ufunc does it, with less Python per segment.
        self._combine = self._kernel.plain_ufunc if self._kernel else None
        count = own.size
        if signature.kind is CollectiveKind.ALL_GATHER:
            count *= world_size
        phases = _PHASES_OF[signature.kind]
        self.plan, self._chunks = _layout(
            rank, world_size, count, wide.itemsize, own.dtype.itemsize, phases, root
        )
        self.is_small = count * own.dtype.itemsize <= limits.SMALL_ARRAY_BYTES
        self._own = own
        self._own_start, _ = self.plan.own_bounds
        self._result_start, stop = self.plan.result_bounds
        if result is None:
            result = np.empty(stop - self._result_start, own.dtype)
        assert result.size == stop - self._result_start, (result.size, self.plan)
        self.result = result
        self._result_bytes = as_bytes(result)
        self._own_bytes = as_bytes(own)
        self._itemsize = own.dtype.itemsize
        #: Partial results go where the result will be, if that is as large and as wide.
        self._has_room = phases == plans.ALL_REDUCE and wide == own.dtype
        #: The chunk with whose segments the rank's own are stored: while others are on their
        #: way, not before the first is sent.
        self._store_own_with = -1
        if signature.kind is CollectiveKind.ALL_GATHER and world_size > 1:
            self._store_own_with = self.plan.first_chunk
        #: Whether runs are sent and taken: where they have a place.
        self._has_runs = self.may_run and (self._has_room or phases == plans.ALL_GATHER)
        segment_bytes = self.plan.segment_elements * self._itemsize
        self._run_bytes = segment_bytes if self._has_runs else sys.maxsize
        self._received = bytearray(self.plan.bitmap_size)
        self._missing_count = self.plan.expected_segment_count
        self.sent_bytes = 0
        self.received_bytes = 0

    def allow_runs(self, bytes_max: int, stream_count: int) -> None:
        """Send adjacent segments as one, up to so many bytes, unless streams would be idle."""
        if not self._has_runs:
            return
        segment_bytes = self.plan.segment_elements * self._itemsize
        runs_min = max(limits.RUNS_PER_CHUNK_MIN, stream_count)
        fitting = min(bytes_max // segment_bytes, self.plan.segment_count(0) // runs_min)
        self._run_segments = max(1, fitting)
        self._run_bytes = self._run_segments * segment_bytes

    @property
    def digest(self) -> bytes | None:
        """Of the result as it travelled, to be compared; None: nothing can have changed it."""
        return None

    @property
    def compression(self) -> float:
        """How many times fewer bytes this rank has sent than it would unpacked."""
        return self._plain_bytes / self._packed_bytes if self._packed_bytes else 1.0

    @property
    def is_done(self) -> bool:
        """All that this rank receives is here."""
        return self._missing_count == 0

    def first_segments(self) -> Iterator[Segment]:
        """What this rank sends unasked: its own values."""
        if self.plan.world_size == 1 and self.result is not self._own:
            np.copyto(self.result, self._own)
        for phase, chunk in self.plan.begins_with:
            count = self.plan.segment_count(chunk)
            for index in range(0, count, self._run_segments):
                last = min(index + self._run_segments, count) - 1
                start, _ = self.plan.segment_bounds(chunk, index)
                _, stop = self.plan.segment_bounds(chunk, last)
                first, end = start - self._own_start, stop - self._own_start
                if phase is Phase.REDUCE_SCATTER and self._wide != self._own.dtype:
                    assert self._kernel is not None
                    wide = self._partial(start, stop)
                    self._kernel.widen(self._own[first:end], wide)
                    view = as_bytes(wide)
                else:
                    view = self._own_bytes[first * self._itemsize : end * self._itemsize]
                yield self._segment(_KINDS[phase], chunk, index, view)

    def _segments(
        self, kind: SegmentKind, came: SegmentHeader, view: memoryview
    ) -> Sequence[Segment]:
        """What is passed on of something that came, in runs as the way ahead allows them."""
        size = self._run_bytes
        if len(view) <= size:
            return (self._segment(kind, came.chunk, came.segment, view),)
        return [
            self._segment(
                kind,
                came.chunk,
                came.segment + start // size * self._run_segments,
                view[start : start + size],
            )
            for start in range(0, len(view), size)
        ]

    def _segment(self, kind: SegmentKind, chunk: int, index: int, view: memoryview) -> Segment:
        size = len(view)
        tag_hash, ordinal = self.key
        header = pack_header(
            kind, self.generation, tag_hash, ordinal, self.signature, chunk, index, size
        )
        self.sent_bytes += size
        return Segment(header, view, self)

    def _count(self, kind: SegmentKind, element_count: int, packed_bytes: int) -> None:
        """Count a segment that was packed."""
        is_partial = kind is SegmentKind.REDUCE_SCATTER
        itemsize = self._wide.itemsize if is_partial else self._itemsize
        self._plain_bytes += element_count * itemsize
        self._packed_bytes += packed_bytes

    def _partial(self, start: int, stop: int) -> NDArray[Any]:
        """Memory for partial results of one segment; freed when it is sent."""
        return self.result[start:stop] if self._has_room else np.empty(stop - start, self._wide)

    def expects(self, header: SegmentHeader) -> bool:
        """Does the segment fit the plan, and is it not here yet?"""
        found = self._find(header)
        return found is not None and not self._is_here(found)

    def _is_here(self, found: "Found") -> bool:
        """Is any of these segments here?"""
        return self._received.find(1, found.bit, found.bit_stop) >= 0

    def _find(self, header: SegmentHeader) -> "Found | None":
        """Where a segment, or a run of several, belongs; None if it is not of this transfer."""
        if header is not self._header:
            self._header = header
            self._found = self._locate(header)
        return self._found

    def _locate(self, header: SegmentHeader) -> "Found | None":
        if header.signature != self.signature:
            return None
        chunk = self._chunks.get((header.kind, header.chunk)) or self._chunk_of(header)
        if chunk is None:
            return None
        bit = chunk.bit + header.segment
        start = chunk.start + header.segment * self.plan.segment_elements
        stop = min(start + self.plan.segment_elements, chunk.stop)
        if bit >= chunk.bit_stop:
            return None
        if self._is_size(header, stop - start, chunk):
            return Found(start, stop, bit, bit + 1)
        if not self._has_runs:
            return None
        count, rest = divmod(header.payload_bytes, chunk.itemsize)
        segments, sliver = divmod(count, self.plan.segment_elements)
        stop = start + count
        if rest or not count or stop > chunk.stop or (sliver and stop != chunk.stop):
            return None
        return Found(start, stop, bit, bit + segments + (sliver > 0))

    def _is_size(self, header: SegmentHeader, element_count: int, chunk: Chunk) -> bool:
        """Is the payload as long as so many elements are?"""
        return header.payload_bytes == element_count * chunk.itemsize

    def _chunk_of(self, header: SegmentHeader) -> Chunk | None:
        """Look up a chunk in the plan; None if this rank does not receive any of it."""
        phase, chunk = _PHASES[header.kind], header.chunk
        if not self.plan.receives_segment(phase, chunk, 0):
            return None
        start, stop = self.plan.chunk_bounds(chunk)
        bit = self.plan.segment_index(phase, chunk, 0)
        itemsize = self._wide.itemsize if phase is Phase.REDUCE_SCATTER else self._itemsize
        is_final = phase is Phase.REDUCE_SCATTER and chunk == self.plan.owned_chunk
        found = Chunk(
            start,
            stop,
            bit,
            bit + self.plan.segment_count(chunk),
            itemsize,
            phase,
            self.plan.passes_on(Phase.ALL_GATHER if is_final else phase, chunk),
            SegmentKind.ALL_GATHER if is_final else header.kind,
            is_final,
        )
        self._chunks[header.kind, chunk] = found
        return found

    def place(self, header: SegmentHeader) -> memoryview | None:
        """Where the payload may be read to directly; None: into scratch first."""
        if header.kind is not SegmentKind.ALL_GATHER and not self._has_room:
            return None
        found = self._find(header)
        assert found is not None
        return self._result_bytes[found.start * self._itemsize : found.stop * self._itemsize]

    def accept(self, header: SegmentHeader, payload: memoryview | None) -> Sequence[Segment]:
        """Take a segment that is whole; return what is to be passed on.

        `payload` is None if it was read to where `place` said.
        """
        found = self._find(header)
        if found is None or self._is_here(found):
            return ()  # came twice
        start, stop, bit, bit_stop = found
        count = bit_stop - bit
        self._received[bit:bit_stop] = b"\1" * count
        self.received_bytes += header.payload_bytes
        take = self._store if header.kind is SegmentKind.ALL_GATHER else self._reduce
        segments = take(header, start, stop, payload)
        self._missing_count -= count  # what has raised is never done
        return segments

    def _store(
        self, header: SegmentHeader, start: int, stop: int, payload: memoryview | None
    ) -> Sequence[Segment]:
        view = self._result_bytes[start * self._itemsize : stop * self._itemsize]
        if payload is not None:
            view[:] = payload
        chunk = self._chunks[header.kind, header.chunk]
        if header.chunk == self._store_own_with:  # as long as the rank's own
            first, end = start - chunk.start, stop - chunk.start
            self.result[self._own_start + first : self._own_start + end] = self._own[first:end]
        if not chunk.passes_on:
            return ()
        return self._segments(SegmentKind.ALL_GATHER, header, view)

    def _reduce(
        self, header: SegmentHeader, start: int, stop: int, payload: memoryview | None
    ) -> Sequence[Segment]:
        assert self._kernel is not None
        if payload is None:  # it lies where the sum will be: that memory is in the cache now
            received = self.result[start:stop]
        else:
            received = np.frombuffer(payload, self._wide)
        own = self._own[start:stop]
        chunk = self._chunks[header.kind, header.chunk]
        if chunk.is_final:
            start -= self._result_start
            stop -= self._result_start
            out = self.result[start:stop]
            if self._combine is not None and self._kernel.is_plain_finish:
                self._combine(received, own, out=out)
            else:
                self._kernel.finish(received, own, out)
            if not chunk.passes_on:
                return ()
            view = self._result_bytes[start * self._itemsize : stop * self._itemsize]
        else:
            out = self._partial(start, stop)
            if self._combine is not None:
                self._combine(received, own, out=out)
            else:
                self._kernel.combine(received, own, out)
            view = as_bytes(out)
        return self._segments(chunk.next_kind, header, view)
