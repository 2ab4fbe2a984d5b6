import random
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ringhaul.ids import ReduceOp
from ringhaul.ring.casts import BLOCK_ELEMENTS
from ringhaul.ring.plan import Phase, RingPlan
from ringhaul.ring.reduce import (
    Kernel,
    accumulate_dtype,
    check_op,
    dtype_name,
    element_dtype,
)

Array = NDArray[Any]
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float16", "bfloat16", "float32", "float64")
NARROW = ("float16", "bfloat16")
KERNELS = [
    (op, dtype)
    for dtype in INTEGERS + FLOATS
    for op in ReduceOp
    if op is not ReduceOp.AVG or dtype in FLOATS
]
every_kernel = pytest.mark.parametrize(("op", "dtype"), KERNELS)
UFUNCS: dict[ReduceOp, np.ufunc] = {
    ReduceOp.SUM: np.add,
    ReduceOp.AVG: np.add,
    ReduceOp.PROD: np.multiply,
    ReduceOp.MIN: np.minimum,
    ReduceOp.MAX: np.maximum,
}


def make_values(dtype: str, count: int, seed: int, *, wild: bool = False) -> Array:
    """Any integers; floats around 1, or of any bit pattern if `wild`."""
    dice = np.random.default_rng(seed)
    element = element_dtype(dtype)
    if dtype in INTEGERS or wild:
        raw = np.frombuffer(dice.bytes(count * element.itemsize), np.uint8)
        return raw.view(element).copy()
    return dice.standard_normal(count).astype(element)


def fold_in_ring_order(op: ReduceOp, values: list[Array]) -> Array:
    """The result, one chunk after the other, in plain NumPy."""
    world_size, dtype = len(values), values[0].dtype
    if world_size == 1:
        return values[0]
    wide = np.dtype(np.float32) if dtype.name in NARROW else dtype
    chunks = [np.array_split(array.astype(wide), world_size) for array in values]
    results = []
    with np.errstate(all="ignore"):
        for chunk in range(world_size):
            result = chunks[(chunk + 1) % world_size][chunk]
            for step in range(2, world_size + 1):
                result = UFUNCS[op](result, chunks[(chunk + step) % world_size][chunk])
            if op is ReduceOp.AVG:
                result = (result / wide.type(world_size)).astype(wide)
            results.append(result.astype(dtype))
    return np.concatenate(results)


class RankOnPaper:
    """One rank: its values, its result, and what it does with a segment."""

    def __init__(self, plan: RingPlan, op: ReduceOp, own: Array) -> None:
        self.plan = plan
        self.kernel = Kernel(op, own.dtype, plan.world_size)
        self.own = own
        self.out = own.copy() if plan.world_size == 1 else np.zeros_like(own)

    def begin(self) -> list[tuple[Phase, int, int, Array]]:
        chunk = self.plan.first_chunk
        if self.plan.world_size == 1:
            return []
        begun = []
        for segment in range(self.plan.segment_count(chunk)):
            own = self.own[slice(*self.plan.segment_bounds(chunk, segment))]
            wide = np.empty(own.size, self.kernel.accumulate_dtype)
            self.kernel.widen(own, wide)
            begun.append((Phase.REDUCE_SCATTER, chunk, segment, wide))
        return begun

    def take(
        self, phase: Phase, chunk: int, segment: int, received: Array
    ) -> list[tuple[Phase, int, int, Array]]:
        place = slice(*self.plan.segment_bounds(chunk, segment))
        if phase is Phase.REDUCE_SCATTER and self.plan.passes_on(phase, chunk):
            self.kernel.combine(received, self.own[place], received)
            return [(phase, chunk, segment, received)]
        if phase is Phase.REDUCE_SCATTER:
            self.kernel.finish(received, self.own[place], self.out[place])
            return [(Phase.ALL_GATHER, chunk, segment, self.out[place].copy())]
        self.out[place] = received
        if self.plan.passes_on(phase, chunk):
            return [(phase, chunk, segment, received)]
        return []


def all_reduce_on_paper(
    op: ReduceOp, values: list[Array], segment_elements: int, seed: int
) -> list[Array]:
    """What each rank ends with when segments arrive in any order."""
    world_size = len(values)
    ranks = [
        RankOnPaper(RingPlan(rank, world_size, own.size, segment_elements), op, own)
        for rank, own in enumerate(values)
    ]
    under_way = [(rank, segment) for rank in range(world_size) for segment in ranks[rank].begin()]
    dice = random.Random(seed)
    while under_way:
        sender, segment = under_way.pop(dice.randrange(len(under_way)))
        receiver = (sender + 1) % world_size
        under_way += [(receiver, sent) for sent in ranks[receiver].take(*segment)]
    return [rank.out for rank in ranks]


def assert_same_values(actual: Array, expected: Array) -> None:
    assert actual.dtype == expected.dtype
    if expected.dtype.name in NARROW:
        actual, expected = actual.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_array_equal(actual, expected)


@every_kernel
@settings(max_examples=15)
@given(st.data())
def test_ring_gives_all_ranks_the_bits_of_a_plain_fold(
    op: ReduceOp, dtype: str, data: st.DataObject
) -> None:
    world_size = data.draw(st.sampled_from((1, 2, 3, 5, 8)))
    edges = (0, 1, world_size - 1, world_size, world_size + 1)
    count = data.draw(st.sampled_from(edges) | st.integers(0, 400))
    seed = data.draw(st.integers(0, 2**32))
    wild = data.draw(st.booleans())
    values = [make_values(dtype, count, seed + rank, wild=wild) for rank in range(world_size)]
    inputs = [own.copy() for own in values]

    results = all_reduce_on_paper(op, values, data.draw(st.integers(1, 60)), seed)
    assert {result.tobytes() for result in results} == {results[0].tobytes()}
    assert_same_values(results[0], fold_in_ring_order(op, values))
    assert [own.tobytes() for own in values] == [own.tobytes() for own in inputs]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_sums_wrap_as_numpy_sums(dtype: str, world_size: int) -> None:
    values = [make_values(dtype, 50, rank) for rank in range(world_size)]

    results = all_reduce_on_paper(ReduceOp.SUM, values, 7, seed=0)
    assert_same_values(results[-1], np.sum(values, axis=0, dtype=dtype))


@pytest.mark.parametrize("dtype", NARROW)
def test_small_floats_are_summed_in_float32_and_rounded_once(dtype: str) -> None:
    last_bit = 2.0 ** (-11 if dtype == "float16" else -8)  # half a unit of 1.0: lost if added to it
    values = [np.full(8, value).astype(element_dtype(dtype)) for value in (1, last_bit, last_bit)]

    results = all_reduce_on_paper(ReduceOp.SUM, values, 3, seed=0)
    assert results[0].astype(np.float64).tolist() == [1 + 2 * last_bit] * 8


@every_kernel
@pytest.mark.parametrize(
    "count", [0, 1, BLOCK_ELEMENTS - 1, BLOCK_ELEMENTS, 2 * BLOCK_ELEMENTS + 3]
)
def test_kernels_are_right_at_the_edges_of_blocks(op: ReduceOp, dtype: str, count: int) -> None:
    kernel = Kernel(op, dtype, 3)
    own = make_values(dtype, count, 1)
    received = make_values(dtype, count, 2).astype(kernel.accumulate_dtype)
    wide, combined, finished = received.copy(), received.copy(), own.copy()
    kernel.widen(own, wide)
    kernel.combine(received, own, combined)
    kernel.finish(received, own, finished)

    with np.errstate(all="ignore"):
        expected = UFUNCS[op](received, own.astype(kernel.accumulate_dtype))
    assert_same_values(wide, own.astype(kernel.accumulate_dtype))
    assert_same_values(combined, expected)
    divisor = kernel.accumulate_dtype.type(3 if op is ReduceOp.AVG else 1)
    divided = expected if op is not ReduceOp.AVG else expected / divisor
    assert_same_values(finished, divided.astype(own.dtype))


@every_kernel
def test_an_output_may_be_an_input(op: ReduceOp, dtype: str) -> None:
    kernel = Kernel(op, dtype, 3)
    own, received = make_values(dtype, 100, 1), make_values(dtype, 100, 2)
    received = received.astype(kernel.accumulate_dtype)
    combined, finished = np.empty_like(received), np.empty_like(own)
    kernel.combine(received, own, combined)
    kernel.finish(received, own, finished)

    in_received, in_own = received.copy(), own.copy()
    kernel.combine(in_received, own, in_received)
    kernel.finish(received, in_own, in_own)
    assert in_received.tobytes() == combined.tobytes()
    assert in_own.tobytes() == finished.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_received_stands_before_own(dtype: str) -> None:
    kernel = Kernel(ReduceOp.SUM, dtype, 2)
    received = np.array([np.nan], kernel.accumulate_dtype)
    own = np.array([-np.nan], element_dtype(dtype))
    combined = np.empty_like(received)
    kernel.combine(received, own, combined)

    expected = np.add(received, own.astype(kernel.accumulate_dtype))
    assert combined.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_finish_may_leave_the_result_wide(dtype: str) -> None:
    kernel = Kernel(ReduceOp.AVG, dtype, 3)
    own = make_values(dtype, 100, 1)
    received = make_values(dtype, 100, 2).astype(kernel.accumulate_dtype)
    wide, narrowed, finished = np.empty_like(received), np.empty_like(own), np.empty_like(own)
    kernel.finish(received, own, wide)
    kernel.finish(received, own, finished)
    kernel.narrow(wide, narrowed)

    expected = (received + own.astype(wide.dtype)) / wide.dtype.type(3)
    assert wide.tobytes() == expected.tobytes()
    assert narrowed.tobytes() == finished.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_overflow_to_infinity_without_a_warning(dtype: str) -> None:
    kernel = Kernel(ReduceOp.SUM, dtype, 2)
    largest = ml_dtypes.finfo(element_dtype(dtype)).max  # type: ignore[no-untyped-call]
    own = np.full(3, largest)
    finished = np.empty_like(own)
    with np.errstate(all="raise"):
        kernel.finish(own.astype(kernel.accumulate_dtype), own, finished)

    assert np.isinf(finished.astype(np.float64)).all()


@pytest.mark.parametrize("dtype", NARROW)
def test_widening_is_exact_for_every_bit_pattern(dtype: str) -> None:
    own = np.arange(1 << 16, dtype=np.uint16).view(element_dtype(dtype))
    wide = np.empty(own.size, np.float32)
    Kernel(ReduceOp.SUM, dtype, 2).widen(own, wide)

    np.testing.assert_array_equal(wide, own.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(wide), np.signbit(own.astype(np.float32)))


def between_all_neighbours(dtype: str) -> NDArray[np.float32]:
    """Each value of a 16-bit float, the middle to the next one, and float32's neighbours."""
    patterns = np.arange(1 << 16, dtype=np.uint16).view(element_dtype(dtype))
    with np.errstate(invalid="ignore"):  # signalling NaNs
        patterns = patterns.astype(np.float64)
    finite = np.sort(patterns[np.isfinite(patterns)])
    top = 2 * finite[-1] - finite[-2]  # where the next value would be: infinity begins between
    finite = np.concatenate([[-top], finite, [top]])
    with np.errstate(over="ignore"):
        exact = np.concatenate([finite, (finite[1:] + finite[:-1]) / 2]).astype(np.float32)
        beside = [np.nextafter(exact, np.float32(way)) for way in (-np.inf, np.inf)]
    return np.concatenate([exact, *beside])


@pytest.mark.parametrize("dtype", NARROW)
def test_narrowing_rounds_as_a_cast_does(dtype: str) -> None:
    random_bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, np.uint32)
    specials = np.array([0.0, -0.0, np.inf, -np.inf], np.float32)
    drawn = random_bits.view(np.float32)
    values = np.concatenate([between_all_neighbours(dtype), specials, drawn[~np.isnan(drawn)]])
    narrowed = np.empty(values.size, element_dtype(dtype))
    Kernel(ReduceOp.SUM, dtype, 2).narrow(values, narrowed)

    with np.errstate(all="ignore"):
        assert narrowed.tobytes() == values.astype(element_dtype(dtype)).tobytes()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("nan_bits", [0x7F800001, 0x7F801000, 0x7FC00000, 0xFF800001, 0xFFFFFFFF])
def test_nan_stays_nan(dtype: str, nan_bits: int) -> None:
    values = np.array([1.0, 0.0, np.inf], np.float32)
    values.view(np.uint32)[1] = nan_bits
    narrowed = np.empty(3, element_dtype(dtype))
    Kernel(ReduceOp.SUM, dtype, 2).narrow(values, narrowed)

    wide = narrowed.astype(np.float32)
    assert wide[0] == 1.0
    assert np.isnan(wide[1])
    assert np.isinf(wide[2])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_average_of_integers_is_refused_with_advice(dtype: str) -> None:
    with pytest.raises(TypeError, match=f'"avg" of {dtype}.*"sum" and divide.*cast'):
        check_op(ReduceOp.AVG, dtype)
    with pytest.raises(TypeError, match="avg"):
        Kernel(ReduceOp.AVG, dtype, 2)


@pytest.mark.parametrize("dtype", [bool, np.complex64, "S4", "M8[s]", object, "float8_e4m3fn"])
def test_other_dtypes_are_refused_with_the_list(dtype: Any) -> None:  # noqa: ANN401
    given = ml_dtypes.float8_e4m3fn if dtype == "float8_e4m3fn" else dtype
    with pytest.raises(TypeError, match=r"cannot be reduced; use one of int8, .*bfloat16"):
        check_op(ReduceOp.SUM, given)


@pytest.mark.parametrize("dtype", ["float32", "int16", "float16"])
def test_foreign_byte_order_is_refused_with_advice(dtype: str) -> None:
    with pytest.raises(TypeError, match=f"byte order.*astype.'{dtype}'"):
        check_op(ReduceOp.SUM, np.dtype(dtype).newbyteorder("S"))


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
def test_a_dtype_comes_back_from_its_name(dtype: str) -> None:
    assert dtype_name(dtype) == dtype
    assert dtype_name(element_dtype(dtype)) == dtype
    assert element_dtype(dtype).name == dtype
    expected = "float32" if dtype in NARROW else dtype
    assert accumulate_dtype(dtype).name == expected


def test_a_wrong_name_from_the_wire_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        element_dtype("no such dtype")
    with pytest.raises(TypeError):
        element_dtype("")


def test_arrays_of_different_length_are_our_bug() -> None:
    kernel = Kernel(ReduceOp.SUM, "float32", 2)
    with pytest.raises(AssertionError):
        kernel.combine(np.ones(1, np.float32), np.ones(2, np.float32), np.ones(2, np.float32))
