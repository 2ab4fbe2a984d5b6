"""A ring all-reduce in one process: the same hops as over sockets, without the sockets.

For tests of codecs and for `bench/codecs.py`. Every rank has a coder of its own, and segments
are cut as `plan_ring` cuts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringhaul.ids import ReduceOp
from ringhaul.quant import Codec, ErrorFeedback, Residual, SegmentCoder, find_codec
from ringhaul.ring.plan import Phase, RingPlan, plan_ring
from ringhaul.ring.reduce import accumulate_dtype, element_dtype


@dataclass(frozen=True, slots=True)
class RingResult:
    """What every rank ends with, and the bytes that all of them sent."""

    results: list[NDArray[Any]]
    wire_bytes: int


def ring_all_reduce(
    arrays: Sequence[NDArray[Any]],
    codec: Codec | Sequence[ErrorFeedback],
    op: ReduceOp = ReduceOp.SUM,
    *,
    tag: str = "test",
    commits: bool = True,
) -> RingResult:
    """Reduce one array per rank, at least two.

    Args:
        arrays: of one dtype and shape (n,), by rank; only read.
        codec: for all, or the error feedback of each rank.
        op: the operation.
        tag: under which error feedback keeps its residuals.
        commits: whether the call is committed; if not, residuals stay as they are.
    """
    world_size, dtype = len(arrays), arrays[0].dtype
    codecs: Sequence[Codec] = codec if isinstance(codec, Sequence) else [codec] * world_size
    coders = [SegmentCoder(each, op, dtype, world_size) for each in codecs]
    reserved = [
        each.reserve(tag, arrays[0].size, dtype) if isinstance(each, ErrorFeedback) else None
        for each in codecs
    ]
    rounds = [each.begin() if each else None for each in reserved]
    results = [np.empty_like(array) for array in arrays]
    plan = plan_ring(0, world_size, arrays[0].size, accumulate_dtype(dtype).itemsize)
    wire_bytes = 0
    for chunk in range(world_size):
        for segment in range(plan.segment_count(chunk)):
            start, stop = plan.segment_bounds(chunk, segment)
            residuals = [each.at(start, stop) if each else None for each in rounds]
            own = [array[start:stop] for array in arrays]
            parts = [result[start:stop] for result in results]
            wire_bytes += _reduce_segment(plan, chunk, segment, coders, own, parts, residuals)
    for each in rounds:
        if each is not None:
            each.commit() if commits else each.rollback()
    for reservation in reserved:
        if reservation is not None:
            reservation.release()
    return RingResult(results, wire_bytes)


def _reduce_segment(
    plan: RingPlan,
    chunk: int,
    segment: int,
    coders: Sequence[SegmentCoder],
    own: Sequence[NDArray[Any]],
    results: Sequence[NDArray[Any]],
    residuals: Sequence[Residual | None],
) -> int:
    """Send one segment around the ring, twice; return the bytes sent."""
    world_size, element_count = len(coders), own[0].size
    wire_bytes = 0
    payload = b""
    for hop in range(1, world_size + 1):
        rank = (chunk + hop) % world_size
        coder, residual = coders[rank], residuals[rank]
        phase = Phase.ALL_GATHER if hop == world_size else Phase.REDUCE_SCATTER
        out = np.empty(coder.encoded_size(phase, element_count), np.uint8)
        nonce = plan.segment_index(phase, chunk, segment) * world_size + rank
        if hop == 1:
            size = coder.encode_own(own[rank], out, nonce=nonce, residual=residual)
        elif hop < world_size:
            size = coder.pass_on(payload, own[rank], out, nonce=nonce, residual=residual)
        else:
            size = coder.finish(
                payload, own[rank], out, results[rank], nonce=nonce, residual=residual
            )
        assert coder.is_size(phase, element_count, size), (phase, element_count, size)
        payload = out[:size].tobytes()
        wire_bytes += size if hop < world_size else size * (world_size - 1)
    for hop in range(1, world_size):
        rank = (chunk + hop) % world_size
        coders[rank].decode(payload, results[rank])
    return wire_bytes


def coder_of(codec: str, dtype: str) -> SegmentCoder:
    """A coder for sums over two ranks."""
    return SegmentCoder(find_codec(codec), ReduceOp.SUM, element_dtype(dtype), 2)


def round_trip(codec: str, values: NDArray[Any], nonce: int = 0) -> NDArray[Any]:
    """Encode as a partial result, decode, and add to zeros: in the accumulate dtype."""
    coder = coder_of(codec, values.dtype.name)
    out = np.empty(coder.encoded_size(Phase.REDUCE_SCATTER, values.size), np.uint8)
    size = coder.encode_own(values, out, nonce=nonce)
    back = np.empty(values.size, accumulate_dtype(values.dtype))
    coder.decode_add(out[:size], np.zeros_like(values), back)
    return back
