"""`codec=` over loopback TCP: the same bits everywhere, within the bound, clearly refused."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul import (
    CodecError,
    Communicator,
    ErrorFeedback,
    MismatchError,
    ReduceInfo,
    connect,
)
from ringhaul.quant import codec_names, find_codec
from ringhaul.testing.threads import Cluster, Driver, together

Array = NDArray[Any]
Ring = Sequence[Driver[Communicator]]

LOSSY = [name for name in codec_names() if find_codec(name).is_lossy]
WORLD_SIZES = (1, 2, 3, 5)
COUNTS = (0, 1, 2, 6, 1025, 300_001)


def connect_as(world_size: int) -> Callable[[str], Communicator]:
    return lambda address: connect(address, min_world_size=world_size)


@pytest.fixture(scope="module", params=WORLD_SIZES, ids=lambda n: f"world{n}")
def ring(request: pytest.FixtureRequest) -> Iterator[Ring]:
    world_size: int = request.param
    with Cluster(connect_as(world_size)) as cluster:
        yield cluster.drivers(world_size)


@pytest.fixture(scope="module")
def pair() -> Iterator[Ring]:
    with Cluster(connect_as(2)) as cluster:
        yield cluster.drivers(2)


def inputs(world_size: int, count: int, dtype: str = "float32") -> list[Array]:
    rng = np.random.default_rng(count)
    return [rng.standard_normal(count).astype(dtype) for _ in range(world_size)]


def reduce_all(ring: Ring, arrays: list[Array], **options: Any) -> list[Array]:  # noqa: ANN401
    """What each member has after an all-reduce of `arrays`, in place."""
    results = {}

    def act(comm: Communicator) -> ReduceInfo:
        array = arrays[comm.rank].copy()
        info = comm.all_reduce(array, **options)
        results[comm.rank] = array
        return info

    together(ring, act)
    return [results[rank] for rank in range(len(ring))]


@pytest.mark.parametrize("codec", [*LOSSY, "uint8+zstd", "raw+zstd"])
@pytest.mark.parametrize("count", COUNTS)
def test_all_members_end_with_the_same_bits_near_the_sum(
    ring: Ring, codec: str, count: int
) -> None:
    arrays = inputs(len(ring), count)
    results = reduce_all(ring, arrays, codec=codec)

    assert len({result.tobytes() for result in results}) == 1
    exact = np.sum([array.astype(np.float64) for array in arrays], axis=0)
    reach = np.sum([np.abs(array).max(initial=0) for array in arrays])
    per_hop = find_codec(codec).error_bound(-reach, reach)
    bound = len(ring) * (per_hop + 2**-20 * reach)
    assert np.abs(results[0] - exact).max(initial=0) <= bound
    if len(ring) == 1:
        np.testing.assert_array_equal(results[0], arrays[0])


@pytest.mark.parametrize("codec", ["uint8", "uint4", "fp16+zstd"])
@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("op", ["avg", "max"])
def test_other_dtypes_and_operations(ring: Ring, codec: str, dtype: str, op: str) -> None:
    arrays = inputs(len(ring), 5000, dtype)
    results = reduce_all(ring, arrays, op=op, codec=codec)

    assert len({result.tobytes() for result in results}) == 1
    ufunc = np.mean if op == "avg" else np.max
    exact = ufunc([array.astype(np.float64) for array in arrays], axis=0)
    assert np.abs(results[0].astype(np.float64) - exact).max() < (1.5 if codec == "uint4" else 0.1)


def test_integers_may_be_compressed_without_loss(ring: Ring) -> None:
    arrays = [np.arange(300_000, dtype=np.int32) % 7 * (rank + 1) for rank in range(len(ring))]
    results = reduce_all(ring, arrays, codec="raw+zstd")

    for result in results:
        np.testing.assert_array_equal(result, np.sum(arrays, axis=0))


@pytest.mark.parametrize("op", ["sum", "avg", "max"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_compression_alone_changes_no_bit(ring: Ring, dtype: str, op: str) -> None:
    """Of arrays that can be compressed, and of parts that cannot."""
    arrays = inputs(len(ring), 400_001, dtype)
    for array in arrays:
        array[: array.size // 2] = array[0]
    outs = [np.empty_like(array) for array in arrays]

    plain = reduce_all(ring, arrays, op=op)
    packed = reduce_all(ring, arrays, op=op, codec="raw+zstd")
    together(
        ring,
        lambda comm: comm.all_reduce(
            arrays[comm.rank], op=op, codec="raw+zstd", out=outs[comm.rank]
        ),
    )

    for result in (*packed, *outs):
        assert result.tobytes() == plain[0].tobytes()


def test_a_codec_saves_the_bytes_it_promises(pair: Ring) -> None:
    arrays = inputs(2, 1 << 20)

    def call(comm: Communicator, codec: str) -> ReduceInfo:
        return comm.all_reduce(arrays[comm.rank].copy(), codec=codec)

    sent = {}
    for codec in ("raw", "uint8", "uint4"):
        infos = together(pair, partial(call, codec=codec))
        sent[codec] = infos[0].sent_bytes

    assert sent["raw"] >= 3.9 * sent["uint8"]
    assert sent["raw"] >= 7.5 * sent["uint4"]


def test_out_is_filled_and_the_input_stays(pair: Ring) -> None:
    arrays = inputs(2, 1000)
    before = [array.copy() for array in arrays]
    outs = [np.empty_like(array) for array in arrays]
    together(
        pair, lambda comm: comm.all_reduce(arrays[comm.rank], codec="uint8", out=outs[comm.rank])
    )

    assert outs[0].tobytes() == outs[1].tobytes()
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_a_codec_cannot_carry_fails_for_all_and_changes_nothing(
    pair: Ring, value: float
) -> None:
    arrays = inputs(2, 100_000)
    arrays[1][70_000] = value
    before = [array.copy() for array in arrays]
    futures = [
        driver.begin(lambda comm: comm.all_reduce(arrays[comm.rank], codec="uint8"))
        for driver in pair
    ]
    errors = [future.exception() for future in futures]

    for error in errors:
        assert isinstance(error, CodecError)
        assert isinstance(error, ValueError)
        assert "uint8" in str(error)
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)
    assert {info.attempts for info in together(pair, lambda comm: comm.all_reduce(np.ones(3)))} == {
        1
    }


def test_members_with_different_codecs_are_told(pair: Ring) -> None:
    futures = [
        driver.begin(
            lambda comm: comm.all_reduce(np.ones(10, np.float32), codec=("uint8", "raw")[comm.rank])
        )
        for driver in pair
    ]

    for future in futures:
        error = future.exception()
        assert isinstance(error, MismatchError)
        assert "uint8" in str(error)
        assert "raw" in str(error)


@pytest.mark.parametrize(
    ("array", "options", "error", "words"),
    [
        (np.ones(3, np.int32), {"codec": "uint8"}, TypeError, "int32"),
        (np.ones(3, np.float32), {"codec": "uint8", "op": "prod"}, ValueError, "prod"),
        (np.ones(3, np.float32), {"codec": "uint9"}, ValueError, "uint8"),
        (np.ones(3, np.float32), {"codec": 8}, TypeError, "codec"),
        (np.ones(3, np.float32), {"codec": ErrorFeedback("uint4")}, ValueError, "tag="),
    ],
    ids=["integers", "prod", "unknown", "no name", "no tag"],
)
def test_what_has_no_meaning_is_refused_before_anything_is_sent(
    pair: Ring,
    array: Array,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    (future,) = [pair[0].begin(lambda comm: comm.all_reduce(array, **options))]
    found = future.exception()
    assert isinstance(found, error)
    assert words in str(found)


def test_error_feedback_makes_good_what_was_lost(pair: Ring) -> None:
    arrays = inputs(2, 4096)
    codecs = [ErrorFeedback("uint4"), ErrorFeedback("uint4")]
    total = np.zeros(4096)
    plain = np.zeros(4096)
    outs = [np.empty_like(array) for array in arrays]
    for _ in range(20):
        together(
            pair,
            lambda comm: comm.all_reduce(
                arrays[comm.rank], codec=codecs[comm.rank], tag="gradient", out=outs[comm.rank]
            ),
        )
        total += outs[0]
        plain += reduce_all(pair, arrays, codec="uint4")[0]
    exact = 20 * (arrays[0].astype(np.float64) + arrays[1])

    assert np.abs(total - exact).max() < np.abs(plain - exact).max() / 4
    assert codecs[0].state_dict()["gradient"].shape == (4096,)


def test_many_arrays_with_a_codec(pair: Ring) -> None:
    arrays = [inputs(2, count) for count in (1, 10, 5000, 70_000)]

    def act(comm: Communicator) -> list[Array]:
        mine = [pair_of[comm.rank].copy() for pair_of in arrays]
        comm.all_reduce_many(mine, codec="uint8")
        return mine

    first, second = together(pair, act)
    for one, other in zip(first, second, strict=True):
        assert one.tobytes() == other.tobytes()
