"""One attempt of an all-reduce whose segments travel encoded.

As `RingTransfer`, but every hop decodes, reduces and encodes again; the owner of a chunk encodes
the result once, those bytes go around as they are, and everybody decodes them.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ringhaul.io.ring_transfer import Chunk, RingTransfer
from ringhaul.io.transfer import Segment
from ringhaul.quant import ErrorMeter, FeedbackRound, Residual, SegmentCoder
from ringhaul.ring.plan import Phase, RingPlan
from ringhaul.wire.segment_header import SegmentHeader, SegmentKind

_DIGEST_BYTES = 16
#: Of no two segments that this process encodes is it the same: for stochastic rounding.
_nonces = itertools.count()


class CodedTransfer(RingTransfer):
    """Moves one array around the ring, encoded.

    Args:
        coder: made for this operation, dtype and world size. Transfers take turns with it.
        feedback: what the codec lost in earlier calls, and where it keeps what it loses now.
        meter: sums up what is lost in this attempt, if that is asked for.

    Raises:
        CodecError: the codec is a user's, and what it says of its sizes cannot be.
    """

    may_run = False

    def __init__(
        self,
        *,
        coder: SegmentCoder,
        feedback: FeedbackRound | None = None,
        meter: ErrorMeter | None = None,
        **facts: Any,  # noqa: ANN401 - those of `RingTransfer`
    ) -> None:
        super().__init__(**facts)
        self.feedback = feedback
        self.meter = meter
        self._coder = coder
        self._digest = 0
        #: Final segments that will be passed on, while they are read.
        self._passing: dict[int, memoryview] = {}
        if coder.is_foreign and self.plan.world_size > 1:
            coder.check_sizes(_segment_lengths(self.plan))

    @property
    def digest(self) -> bytes:
        """XXH3 of all final segments as they travel; equal on all members."""
        return self._digest.to_bytes(_DIGEST_BYTES, "big")

    def first_segments(self) -> Iterator[Segment]:
        """This rank's own values, each segment encoded when a stream is free for it."""
        if self.plan.world_size == 1:
            yield from super().first_segments()
        for _, chunk in self.plan.begins_with:
            for index in range(self.plan.segment_count(chunk)):
                start, stop = self.plan.segment_bounds(chunk, index)
                out = self._room(Phase.REDUCE_SCATTER, stop - start)
                size = self._coder.encode_own(
                    self._own[start:stop],
                    out,
                    nonce=next(_nonces),
                    residual=self._residual(start, stop),
                    meter=self.meter,
                )
                yield self._segment(SegmentKind.REDUCE_SCATTER, chunk, index, out[:size])

    def _segment(self, kind: SegmentKind, chunk: int, index: int, view: memoryview) -> Segment:
        start, stop = self.plan.segment_bounds(chunk, index)
        self._count(kind, stop - start, len(view))
        return super()._segment(kind, chunk, index, view)

    def _room(self, phase: Phase, element_count: int) -> memoryview:
        return np.empty(self._coder.encoded_size(phase, element_count), np.uint8).data

    def _residual(self, start: int, stop: int) -> Residual | None:
        return None if self.feedback is None else self.feedback.at(start, stop)

    def _is_size(self, header: SegmentHeader, element_count: int, chunk: Chunk) -> bool:
        return self._coder.is_size(chunk.phase, element_count, header.payload_bytes)

    def place(self, header: SegmentHeader) -> memoryview | None:
        """Memory of its own for what is passed on as it is; scratch for the rest."""
        found = self._find(header)
        assert found is not None
        if not (
            header.kind is SegmentKind.ALL_GATHER
            and self._chunks[header.kind, header.chunk].passes_on
        ):
            return None
        view = self._passing.get(found.bit)
        if view is None:
            view = self._passing[found.bit] = np.empty(header.payload_bytes, np.uint8).data
        return view

    def _store(
        self, header: SegmentHeader, start: int, stop: int, payload: memoryview | None
    ) -> Sequence[Segment]:
        found = self._find(header)
        assert found is not None
        passing = self._passing.pop(found.bit, None)
        if payload is None:
            assert passing is not None
            payload = passing
        self._coder.decode(payload, self.result[start:stop])
        self._add_to_digest(header, payload)
        if not self._chunks[header.kind, header.chunk].passes_on:
            return ()
        kept = payload if payload is passing else memoryview(bytes(payload))
        return self._segments(header.kind, header, kept)

    def _add_to_digest(self, header: SegmentHeader, payload: memoryview) -> None:
        """Take in a final segment; in any order, but each at its place."""
        seed = (header.chunk << 32) | header.segment
        self._digest ^= xxhash.xxh3_128_intdigest(payload, seed)

    def _reduce(
        self, header: SegmentHeader, start: int, stop: int, payload: memoryview | None
    ) -> Sequence[Segment]:
        assert payload is not None
        own: NDArray[Any] = self._own[start:stop]
        chunk = self._chunks[header.kind, header.chunk]
        residual = self._residual(start, stop)
        if chunk.is_final:
            out = self._room(Phase.ALL_GATHER, stop - start)
            result = self.result[start:stop]
            nonce = next(_nonces)
            size = self._coder.finish(
                payload, own, out, result, nonce=nonce, residual=residual, meter=self.meter
            )
            self._add_to_digest(header, out[:size])
        else:
            out = self._room(Phase.REDUCE_SCATTER, stop - start)
            nonce = next(_nonces)
            size = self._coder.pass_on(
                payload, own, out, nonce=nonce, residual=residual, meter=self.meter
            )
        return self._segments(chunk.next_kind, header, out[:size])


def _segment_lengths(plan: RingPlan) -> set[int]:
    """Of all segments, in elements: chunks differ by one, and their last segments."""
    lengths = set()
    for chunk in (0, plan.chunk_count - 1):
        count = plan.segment_count(chunk)
        for segment in {0, count - 1} if count else ():
            start, stop = plan.segment_bounds(chunk, segment)
            lengths.add(stop - start)
    return lengths
