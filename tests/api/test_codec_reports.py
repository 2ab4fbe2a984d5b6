"""What `ReduceInfo` says of a codec: compression, and on request the measured error."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul import Communicator, ErrorFeedback, MeasuredError, ReduceInfo, connect
from ringhaul.testing.threads import Cluster, Driver, together

Array = NDArray[Any]
Ring = Sequence[Driver[Communicator]]
COUNT = 300_001


def connect_as(world_size: int) -> Callable[[str], Communicator]:
    return lambda address: connect(address, min_world_size=world_size)


@pytest.fixture(scope="module", params=[1, 2, 3, 5], ids=lambda n: f"world{n}")
def ring(request: pytest.FixtureRequest) -> Iterator[Ring]:
    world_size: int = request.param
    with Cluster(connect_as(world_size)) as cluster:
        yield cluster.drivers(world_size)


def inputs(world_size: int, dtype: str = "float32") -> list[Array]:
    rng = np.random.default_rng(world_size)
    return [rng.standard_normal(COUNT).astype(dtype) for _ in range(world_size)]


def reduce_all(
    ring: Ring,
    arrays: list[Array],
    **options: Any,  # noqa: ANN401
) -> tuple[Array, list[ReduceInfo]]:
    """The result, and what each member was told."""
    outs = [np.empty_like(array) for array in arrays]
    infos = together(
        ring, lambda comm: comm.all_reduce(arrays[comm.rank], out=outs[comm.rank], **options)
    )
    return outs[0], infos


def measured(infos: list[ReduceInfo]) -> list[MeasuredError]:
    return [info.codec_error for info in infos if info.codec_error is not None]


@pytest.mark.parametrize("codec", ["uint8", "uint8-fine", "uint4", "fp16", "uint4+zstd"])
@pytest.mark.parametrize("op", ["sum", "avg"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_errors_of_all_members_make_up_that_of_the_result(
    ring: Ring, codec: str, op: str, dtype: str
) -> None:
    arrays = inputs(len(ring), dtype)
    result, infos = reduce_all(ring, arrays, op=op, codec=codec, measure_error=True)

    exact = np.sum(np.array(arrays, np.float64), axis=0) / (len(ring) if op == "avg" else 1)
    off = result.astype(np.float64) - exact
    errors = measured(infos)
    assert len(errors) == len(ring)
    assert np.abs(off).max() <= sum(error.largest for error in errors) + 1e-6
    told = math.hypot(*(error.rms for error in errors))
    assert told == pytest.approx(math.sqrt(np.mean(off**2)), rel=0.05)
    assert (told > 0) == (len(ring) > 1)


def test_the_error_of_a_maximum_is_bounded(ring: Ring) -> None:
    arrays = inputs(len(ring))
    result, infos = reduce_all(ring, arrays, op="max", codec="uint4", measure_error=True)

    off = np.abs(result - np.max(arrays, axis=0)).max()
    assert off <= sum(error.largest for error in measured(infos)) + 1e-6


@pytest.mark.parametrize("op", ["sum", "avg"])
def test_what_error_feedback_keeps_is_what_is_measured(ring: Ring, op: str) -> None:
    arrays = inputs(len(ring))
    codecs = [ErrorFeedback("uint4") for _ in ring]

    def act(comm: Communicator) -> ReduceInfo:
        codec = codecs[comm.rank]
        return comm.all_reduce(
            arrays[comm.rank].copy(), op, codec=codec, tag="t", measure_error=True
        )

    ranks = [driver.comm.rank for driver in ring]
    for rank, error in zip(ranks, measured(together(ring, act)), strict=True):
        kept = codecs[rank].state_dict()["t"].astype(np.float64)
        if op == "avg":
            kept /= len(ring)
        assert error.largest == pytest.approx(np.abs(kept).max())
        assert error.rms == pytest.approx(math.sqrt(np.mean(kept**2)))


@pytest.mark.parametrize("codec", ["raw", "raw+zstd"])
def test_a_lossless_codec_has_no_error(ring: Ring, codec: str) -> None:
    _, infos = reduce_all(ring, inputs(len(ring)), codec=codec, measure_error=True)

    assert measured(infos) == [MeasuredError(0.0, 0.0)] * len(ring)


@pytest.mark.parametrize("codec", ["raw", "uint8", "fp16+zstd"])
def test_nothing_is_measured_unasked(ring: Ring, codec: str) -> None:
    _, infos = reduce_all(ring, inputs(len(ring)), codec=codec)

    assert not measured(infos)


@pytest.mark.parametrize("codec", ["raw", "raw+zstd", "uint8", "uint4+zstd"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_compression_is_what_raw_would_have_sent_more(ring: Ring, codec: str, dtype: str) -> None:
    arrays = inputs(len(ring), dtype)
    for array in arrays:
        array[1000:200_000] = 1.0  # can be compressed
    _, raw = reduce_all(ring, arrays)
    _, infos = reduce_all(ring, arrays, codec=codec)

    for plain, info in zip(raw, infos, strict=True):
        saved = plain.sent_bytes / info.sent_bytes if len(ring) > 1 else 1.0
        assert info.compression == pytest.approx(saved)
    if codec == "uint8" and len(ring) > 1:
        assert all(info.compression > (3.9 if dtype == "float32" else 2.9) for info in infos)


def test_infinity_that_a_codec_carries_is_no_error(ring: Ring) -> None:
    arrays = [np.array([np.inf, 1.0, -np.inf], np.float32)] * len(ring)
    _, infos = reduce_all(ring, arrays, codec="fp16", measure_error=True)

    assert all(error == MeasuredError(0.0, 0.0) for error in measured(infos))
    assert len(measured(infos)) == len(ring)


def test_other_forms_measure_too(ring: Ring) -> None:
    arrays = inputs(len(ring))

    def begun(comm: Communicator) -> ReduceInfo:
        own = arrays[comm.rank].copy()
        return comm.all_reduce_async(own, codec="uint4", measure_error=True).wait(60)

    def many(comm: Communicator) -> list[ReduceInfo]:
        own = [arrays[comm.rank].copy() for _ in range(2)]
        return comm.all_reduce_many(own, codec="uint4", measure_error=True)

    def largest(infos: list[ReduceInfo]) -> set[float]:
        return {error.largest for error in measured(infos)}

    _, infos = reduce_all(ring, arrays, codec="uint4", measure_error=True)
    assert largest(together(ring, begun)) == largest(infos)
    for several in together(ring, many):
        assert len(measured(several)) == 2
        assert largest(several) <= largest(infos)
