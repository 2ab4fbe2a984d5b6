"""What a `CodedTransfer` makes of a codec that fails."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul.errors import CodecError, WireError
from ringhaul.ids import CallId, Generation, OpKey, Rank, ReduceOp
from ringhaul.io.coded_transfer import CodedTransfer
from ringhaul.io.transfer import Segment
from ringhaul.quant import SegmentCoder
from ringhaul.wire.records import CollectiveKind, Signature
from ringhaul.wire.segment_header import unpack_header

Array = NDArray[Any]


class HalfCodec:
    """Writes float16. Fails to decode once it is told to; counts what it is asked."""

    name = "half"
    is_lossy = True

    def __init__(self, half_size: int = 2) -> None:
        self.error: Exception | None = None
        self.half_size = half_size
        self.asked: list[int] = []

    def make_coder(self, dtype: np.dtype[Any]) -> "HalfCodec":
        return self

    def error_bound(self, low: float, high: float) -> float:
        return max(abs(low), abs(high)) * 2.0**-11

    def encoded_size(self, element_count: int) -> int:
        self.asked.append(element_count)
        return self.half_size * element_count

    def encode(self, values: Array, out: Array, nonce: int) -> None:
        out.view(np.float16)[:] = values

    def decode(self, data: Array, out: Array) -> None:
        if self.error is not None:
            raise self.error
        out[:] = data.view(np.float16)


def begin(rank: int, codec: HalfCodec, count: int, world_size: int = 2) -> CodedTransfer:
    own = np.ones(count, np.float32)
    return CodedTransfer(
        coder=SegmentCoder(codec, ReduceOp.SUM, own.dtype, world_size),
        call=CallId(1),
        key=OpKey(None, 0),
        generation=Generation(1),
        rank=Rank(rank),
        world_size=world_size,
        signature=Signature(
            kind=CollectiveKind.ALL_REDUCE, op=ReduceOp.SUM, dtype="float32", element_count=count
        ),
        own=own,
    )


def deliver(transfer: CodedTransfer, segments: list[Segment]) -> list[Segment]:
    """Hand over all of them; return what is passed on."""
    passed_on: list[Segment] = []
    for segment in segments:
        header = unpack_header(segment.header)
        assert transfer.expects(header)
        view = transfer.place(header)
        if view is not None:
            view[:] = segment.view
        passed_on += transfer.accept(header, None if view is not None else segment.view)
    return passed_on


@pytest.mark.parametrize("count", [2, 3, 1001])
def test_a_transfer_whose_last_segment_cannot_be_decoded_is_not_done(count: int) -> None:
    codecs = [HalfCodec(), HalfCodec()]
    first, second = (begin(rank, codec, count) for rank, codec in enumerate(codecs))
    of_first, of_second = list(first.first_segments()), list(second.first_segments())
    from_first, from_second = deliver(first, of_second), deliver(second, of_first)
    deliver(second, from_first)
    assert second.is_done
    assert (second.result == 2).all()
    *earlier, last = from_second
    deliver(first, earlier)
    codecs[0].error = OverflowError("too much")

    with pytest.raises(CodecError, match='"half" failed in decode: OverflowError: too much'):
        deliver(first, [last])

    assert not first.is_done
    assert not first.expects(unpack_header(last.header))  # nor taken again


def test_bytes_that_a_codec_of_a_user_refuses_are_the_senders_fault() -> None:
    codec = HalfCodec()
    first, second = begin(0, codec, 2), begin(1, HalfCodec(), 2)
    codec.error = WireError("no half \ud800")

    with pytest.raises(WireError, match=r'codec "half": WireError: no half \\ud800'):
        deliver(first, list(second.first_segments()))


@pytest.mark.parametrize("count", [1, 4, 5, 7, 600_001])
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_sizes_are_asked_for_before_anything_moves_and_once(count: int, world_size: int) -> None:
    codec = HalfCodec()
    transfer = begin(0, codec, count, world_size)
    asked = sorted(codec.asked)
    plan = transfer.plan
    codec.half_size = 0  # what it says now comes too late

    lengths = set()
    for chunk in range(world_size):
        for segment in range(plan.segment_count(chunk)):
            start, stop = plan.segment_bounds(chunk, segment)
            lengths.add(stop - start)
    list(transfer.first_segments())
    for length in lengths:
        assert transfer._coder.is_size(0, length, 2 * length)  # type: ignore[arg-type]

    assert sorted(codec.asked) == asked == sorted(set(asked))


@pytest.mark.parametrize("size", [-1, 0, 1 << 20])
def test_sizes_that_no_receiver_takes_are_refused_before_anything_is_sent(size: int) -> None:
    codec = HalfCodec(size)
    with pytest.raises(CodecError, match='codec "half" '):
        begin(0, codec, 5000)
