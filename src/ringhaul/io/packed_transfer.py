"""One attempt of an all-reduce with codec "raw+zstd".

As `RingTransfer`, but segments are compressed where that is faster than sending them as they are.
What is not compressed costs no more than with "raw": it is sent from the array's memory, and read
to where it will be. What is passed on unchanged keeps the form in which it came.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ringhaul.io.ring_transfer import Chunk, RingTransfer
from ringhaul.io.transfer import Segment
from ringhaul.quant import Compressor
from ringhaul.wire.segment_header import SegmentHeader, SegmentKind


class PackedTransfer(RingTransfer):
    """Moves one array around the ring, packed.

    Args:
        compressor: knows from earlier calls what pays; used by one transfer at a time.
    """

    may_run = False

    def __init__(self, *, compressor: Compressor, **facts: Any) -> None:  # noqa: ANN401
        super().__init__(**facts)
        self._compressor = compressor
        #: The final segment that is being accepted, as it came, if that was compressed.
        self._passing: memoryview | None = None

    def _is_size(self, header: SegmentHeader, element_count: int, chunk: Chunk) -> bool:
        return 0 < header.payload_bytes <= element_count * chunk.itemsize

    def _plain_size(self, header: SegmentHeader) -> int:
        found = self._find(header)
        assert found is not None
        return (found.stop - found.start) * self._chunks[header.kind, header.chunk].itemsize

    def place(self, header: SegmentHeader) -> memoryview | None:
        """As `RingTransfer` does for what came plain; scratch for the rest."""
        return super().place(header) if header.payload_bytes == self._plain_size(header) else None

    def accept(self, header: SegmentHeader, payload: memoryview | None) -> Sequence[Segment]:
        """As `RingTransfer` does, once it is unpacked.

        Raises:
            WireError: these bytes are no packed segment.
        """
        if not self.expects(header) or header.payload_bytes == self._plain_size(header):
            return super().accept(header, payload)
        assert payload is not None
        chunk = self._chunks[header.kind, header.chunk]
        packed = np.frombuffer(payload, np.uint8)
        plain = self._compressor.unpack(packed, self._plain_size(header), chunk.itemsize)
        if header.kind is SegmentKind.ALL_GATHER and chunk.passes_on:
            self._passing = memoryview(bytes(payload))  # what it lies in is the stream's
        try:
            return super().accept(header, plain.data)
        finally:
            self._passing = None

    def _segment(self, kind: SegmentKind, chunk: int, index: int, view: memoryview) -> Segment:
        if self._passing is not None:
            view = self._passing
        elif view:
            itemsize = self._own.dtype.itemsize
            if kind is SegmentKind.REDUCE_SCATTER:
                itemsize = self._wide.itemsize
            body = self._compressor.shorter(np.frombuffer(view, np.uint8), itemsize)
            view = view if body is None else memoryview(body)
        start, stop = self.plan.segment_bounds(chunk, index)
        self._count(kind, stop - start, len(view))
        return super()._segment(kind, chunk, index, view)
