"""All-reduces over n peers in one process: same bits, error bounds, growth, error feedback."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import DTypeLike, NDArray

from ringhaul.ids import ReduceOp
from ringhaul.quant import ErrorFeedback, check_codec, find_codec
from ringhaul.ring.reduce import element_dtype
from ringhaul.testing.codec_ring import ring_all_reduce

Array = NDArray[Any]
FLOATS = ("float16", "bfloat16", "float32", "float64")
FINE = ("uint8-fine", "uint4-fine")
LOSSY = ("uint8", "uint8-zp", "uint8-sr", "uint4", "uint4-sr", *FINE, "fp16", "bf16")
EVERY = (*LOSSY, "raw", "raw+zstd", "uint8+zstd", "uint4-sr+zstd", "uint8-fine+zstd", "bf16+zstd")
WORLD_SIZES = (2, 4, 8, 16)


def arrays_of(
    kind: str, world_size: int, count: int, seed: int, dtype: DTypeLike = np.float32
) -> list[Array]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(world_size):
        values = rng.standard_normal(count)
        if kind == "wide":
            values *= np.exp(1.5 * rng.standard_normal(count))
        elif kind == "offset":
            values += 1000.0
        elif kind == "sparse":
            values *= rng.random(count) < 0.02
        elif kind == "tiny":
            values *= 1e-40
        elif kind == "zeros":
            values *= 0
        made.append(values.astype(dtype))
    return made


def true_sum(arrays: list[Array]) -> Array:
    total: Array = np.sum([array.astype(np.float64) for array in arrays], axis=0)
    return total


@given(
    name=st.sampled_from(EVERY),
    op=st.sampled_from(["sum", "avg", "min", "max"]),
    dtype=st.sampled_from(FLOATS),
    kind=st.sampled_from(["normal", "wide", "offset", "sparse", "tiny", "zeros"]),
    world_size=st.integers(2, 9),
    count=st.integers(1, 5000),
    seed=st.integers(0, 2**32),
)
def test_all_peers_have_the_same_bits(
    name: str, op: str, dtype: str, kind: str, world_size: int, count: int, seed: int
) -> None:
    arrays = arrays_of(kind, world_size, count, seed, element_dtype(dtype))
    before = [array.tobytes() for array in arrays]

    found = ring_all_reduce(arrays, find_codec(name), ReduceOp(op))

    assert len({result.tobytes() for result in found.results}) == 1
    assert [array.tobytes() for array in arrays] == before
    assert all(np.isfinite(result.astype(np.float64)).all() for result in found.results)


@pytest.mark.parametrize("name", EVERY)
def test_all_peers_have_the_same_bits_in_arrays_of_many_segments(name: str) -> None:
    arrays = arrays_of("wide", 3, 1_000_003, 1)

    found = ring_all_reduce(arrays, find_codec(name))

    assert len({result.tobytes() for result in found.results}) == 1


def test_raw_gives_what_numpy_gives() -> None:
    arrays = arrays_of("normal", 2, 70_000, 1, ml_dtypes.bfloat16)
    wanted = (arrays[0].astype(np.float32) + arrays[1].astype(np.float32)).astype(
        ml_dtypes.bfloat16
    )

    for name in ("raw", "raw+zstd"):
        assert (ring_all_reduce(arrays, find_codec(name)).results[0] == wanted).all()


def test_raw_with_zstd_reduces_integers() -> None:
    arrays = [np.arange(100_000, dtype=np.int16) % 7 * (rank + 1) for rank in range(3)]

    found = ring_all_reduce(arrays, find_codec("raw+zstd"), ReduceOp.PROD)

    assert (found.results[2] == arrays[0] * arrays[1] * arrays[2]).all()
    assert found.wire_bytes < 0.5 * 4 * 100_000 * 2


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("kind", ["normal", "wide", "offset", "sparse"])
@pytest.mark.parametrize("name", LOSSY)
def test_the_error_of_an_all_reduce_is_below_the_sum_of_the_bounds(
    name: str, kind: str, world_size: int
) -> None:
    for op in ("sum", "avg", "max"):
        assert_below_the_sum_of_the_bounds(name, kind, world_size, op)


def assert_below_the_sum_of_the_bounds(name: str, kind: str, world_size: int, op: str) -> None:
    """Each encoding is of values in the range of the k partial contributions."""
    arrays = arrays_of(kind, world_size, 6_000, world_size)
    codec = find_codec(name)
    largest = max(float(np.abs(array).max()) for array in arrays)

    bound = 0.0
    for contributions in range(1, world_size + 1):
        reach = largest * (1 if op == "max" else contributions) + bound
        bound += codec.error_bound(-reach, reach) * (1 + 1e-5)
    found = ring_all_reduce(arrays, codec, ReduceOp(op)).results[0]

    wanted = true_sum(arrays) if op != "max" else np.max(arrays, axis=0)
    if op == "avg":
        wanted, bound = wanted / world_size, bound / world_size * (1 + 1e-5)
    # ... and float32 sums of n contributions are rounded themselves
    assert np.abs(found - wanted).max() <= bound + world_size * largest * 2.0**-22


@pytest.mark.parametrize("name", ["uint8", "uint8-zp", "uint4", *FINE])
def test_the_error_grows_at_most_as_the_square_root_of_the_peers(name: str) -> None:
    """Relative to the result; a single encoding is the measure."""
    count = 200_000
    single = arrays_of("normal", 1, count, 0)[0]
    two = [single, np.zeros_like(single)]
    alone = rms(ring_all_reduce(two, find_codec(name)).results[0] - single)
    for world_size in WORLD_SIZES:
        arrays = arrays_of("normal", world_size, count, world_size)
        wanted = true_sum(arrays)

        error = rms(ring_all_reduce(arrays, find_codec(name)).results[0] - wanted) / rms(wanted)

        assert error <= 1.15 * alone * np.sqrt((world_size + 1) / 2)


def rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def with_one_scale(arrays: list[Array]) -> Array:
    """The plain way, for comparison: one range per chunk and hop, codes rounded down."""

    def coded(values: Array) -> Array:
        low = values.min()
        step = (values.max() - low) / 255
        found: Array = np.floor((values - low) / step) * step + low
        return found

    chunks = []
    for parts in zip(*(np.array_split(array, len(arrays)) for array in arrays), strict=True):
        partial = coded(parts[0])
        for own in parts[1:]:
            partial = coded(partial + own)
        chunks.append(partial)
    return np.concatenate(chunks)


@pytest.mark.parametrize("kind", ["normal", "wide", "offset"])
@pytest.mark.parametrize(
    ("name", "factor"), [("uint8", 2.2), ("uint8-zp", 2.2), ("uint8-fine", 3.8)]
)
def test_errors_are_far_below_those_of_one_scale_rounded_down(
    name: str, factor: float, kind: str
) -> None:
    arrays = arrays_of(kind, 3, 600_000, 0)
    wanted = true_sum(arrays)
    plain = with_one_scale(arrays) - wanted

    error = ring_all_reduce(arrays, find_codec(name)).results[0] - wanted

    assert rms(error) * 4 < rms(plain)
    assert np.abs(error).max() * factor < np.abs(plain).max()


@pytest.mark.parametrize("name", LOSSY)
def test_zeros_of_all_peers_stay_zeros(name: str) -> None:
    arrays = arrays_of("sparse", 4, 30_000, 4)
    zeros = np.all([array == 0 for array in arrays], axis=0)
    assert 0.5 < zeros.mean() < 1

    found = ring_all_reduce(arrays, find_codec(name), ReduceOp.AVG).results[0]

    assert not found[zeros].any()


@pytest.mark.parametrize("name", ["uint8", "uint8-zp", "uint4", *FINE, "fp16", "bf16"])
def test_whole_arrays_of_small_integers_are_summed_exactly(name: str) -> None:
    arrays = [np.full(10_000, rank + 1, np.float32) for rank in range(4)]

    assert (ring_all_reduce(arrays, find_codec(name)).results[0] == 10).all()
    assert (ring_all_reduce(arrays, find_codec(name), ReduceOp.AVG).results[3] == 2.5).all()


# -- Error feedback ---------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["sum", "avg"])
@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("name", ["uint4", "uint8", "uint4+zstd", *FINE])
def test_error_feedback_loses_nothing_over_many_calls(name: str, world_size: int, op: str) -> None:
    feedback = [ErrorFeedback(name) for _ in range(world_size)]
    arrays = arrays_of("normal", world_size, 5000, 1)
    total = np.zeros(5000)
    for _ in range(20):
        total += ring_all_reduce(arrays, feedback, ReduceOp(op)).results[0]

    wanted = true_sum(arrays) / (world_size if op == "avg" else 1)
    single = np.abs(ring_all_reduce(arrays, find_codec(name), ReduceOp(op)).results[0] - wanted)
    assert np.abs(total / 20 - wanted).max() < 0.15 * single.max()


def test_the_residuals_are_what_is_missing_from_the_results() -> None:
    feedback = [ErrorFeedback("uint4") for _ in range(3)]
    arrays = arrays_of("normal", 3, 2000, 1)
    total = np.zeros(2000)
    for _ in range(3):
        total += ring_all_reduce(arrays, feedback, ReduceOp.AVG).results[0]

    missing = sum(each.state_dict()["test"].astype(np.float64) for each in feedback)

    np.testing.assert_allclose(total * 3 + missing, 3 * true_sum(arrays), atol=1e-4)


def test_an_aborted_call_changes_no_residual() -> None:
    feedback = [ErrorFeedback("uint4") for _ in range(2)]
    arrays = arrays_of("normal", 2, 2000, 1)
    ring_all_reduce(arrays, feedback)
    before = [each.state_dict()["test"] for each in feedback]
    expected = ring_all_reduce(arrays, feedback, commits=False).results[0]

    assert [(b == a.state_dict()["test"]).all() for b, a in zip(before, feedback, strict=True)]
    assert np.array_equal(before[0], feedback[0].state_dict()["test"])
    assert np.array_equal(before[1], feedback[1].state_dict()["test"])
    assert np.array_equal(ring_all_reduce(arrays, feedback).results[0], expected)
    assert not np.array_equal(before[0], feedback[0].state_dict()["test"])


def test_residuals_are_saved_and_restored() -> None:
    arrays = arrays_of("normal", 2, 2000, 1)
    first = [ErrorFeedback("uint4") for _ in range(2)]
    ring_all_reduce(arrays, first)
    second = [ErrorFeedback("uint4") for _ in range(2)]
    for old, new in zip(first, second, strict=True):
        new.load_state_dict(old.state_dict())

    expected = ring_all_reduce(arrays, first).results[0]
    assert np.array_equal(ring_all_reduce(arrays, second).results[0], expected)


def test_tags_have_residuals_of_their_own() -> None:
    feedback = [ErrorFeedback("uint4") for _ in range(2)]
    arrays = arrays_of("normal", 2, 2000, 1)
    fresh = ring_all_reduce(arrays, feedback, tag="a").results[0]

    assert np.array_equal(ring_all_reduce(arrays, feedback, tag="b").results[0], fresh)
    assert not np.array_equal(ring_all_reduce(arrays, feedback, tag="a").results[0], fresh)
    feedback[0].forget("a")
    feedback[1].forget("a")
    assert np.array_equal(ring_all_reduce(arrays, feedback, tag="a").results[0], fresh)


def test_what_is_not_encoded_keeps_its_residual() -> None:
    feedback = ErrorFeedback("uint4")
    feedback.load_state_dict({"t": np.arange(5, dtype=np.float32)})
    attempt = feedback.reserve("t", 5, np.dtype(np.float16)).begin()
    attempt.at(1, 2).pending[:] = 7

    attempt.commit()

    assert feedback.state_dict()["t"].tolist() == [0, 7, 2, 3, 4]


def test_residuals_are_saved_while_a_call_commits() -> None:
    feedback = ErrorFeedback("uint4")
    reservation = feedback.reserve("new", 3, np.dtype(np.float32))
    attempt = reservation.begin()

    class Committing(np.ndarray[Any, Any]):
        """The I/O thread commits a call of a new tag while this is copied."""

        def copy(self, *_: object) -> Any:  # noqa: ANN401
            attempt.commit()
            return np.array(self)

    feedback._residuals["old"] = np.ones(2, np.float32).view(Committing)

    assert list(feedback.state_dict()) == ["old"]
    assert set(feedback._residuals) == {"old", "new"}


def test_a_reservation_begins_attempts_whatever_becomes_of_the_residuals() -> None:
    feedback = ErrorFeedback("uint4")
    first = feedback.reserve("t", 3, np.dtype(np.float32))
    first.begin().at(0, 1).pending[:] = 7  # an attempt that was aborted
    retry = first.begin()
    retry.at(1, 2).pending[:] = 5
    with pytest.raises(ValueError, match="in flight"):
        feedback.reserve("t", 3, np.dtype(np.float32))
    retry.commit()
    first.release()

    second = feedback.reserve("t", 3, np.dtype(np.float32))
    first.release()  # again: it is another's by now

    assert second.begin().at(0, 3).carried.tolist() == [0, 5, 0]
    with pytest.raises(ValueError, match="in flight"):
        feedback.forget("t")
    del second  # a call that never began
    feedback.forget("t")
    assert feedback.state_dict() == {}


def test_error_feedback_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="lossy"):
        ErrorFeedback("raw")
    with pytest.raises(ValueError, match="lossy"):
        ErrorFeedback(ErrorFeedback("uint4"))
    feedback = ErrorFeedback("uint4")
    with pytest.raises(ValueError, match="tag"):
        feedback.reserve(None, 5, np.dtype(np.float32))
    with pytest.raises(ValueError, match="no meaning"):
        check_codec(feedback, ReduceOp.MAX, np.dtype(np.float32))
    feedback.reserve("t", 5, np.dtype(np.float32)).begin().commit()
    with pytest.raises(ValueError, match="forget"):
        feedback.reserve("t", 6, np.dtype(np.float32))
    with pytest.raises(ValueError, match="forget"):
        feedback.reserve("t", 5, np.dtype(np.float64))
    for bad in (np.zeros((2, 2), np.float32), np.zeros(2, np.int32), np.array([np.nan])):
        with pytest.raises(ValueError, match="residual 'x'"):
            feedback.load_state_dict({"t": np.zeros(5, np.float32), "x": bad})
    assert list(feedback.state_dict()) == ["t"]


def test_infinity_leaves_no_residual() -> None:
    feedback = [ErrorFeedback("bf16") for _ in range(2)]
    arrays = [np.array([np.inf, 1.001], np.float32), np.array([1.0, np.nan], np.float32)]

    ring_all_reduce(arrays, feedback)

    assert all(np.isfinite(each.state_dict()["test"]).all() for each in feedback)
