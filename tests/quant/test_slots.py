"""Values outside of the window of their block: kept as exact as the others, told of in slots."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ringhaul.errors import WireError
from ringhaul.quant import find_codec
from ringhaul.quant.fine import BLOCK_ELEMENTS, BLOCK_SLOTS
from ringhaul.quant.slots import BELOW, HALF, RUN, read_slots, run_count, slot_count, write_slots
from ringhaul.ring.plan import Phase
from ringhaul.testing.codec_ring import coder_of, ring_all_reduce, round_trip

Array = NDArray[Any]
every_codec = pytest.mark.parametrize("name", ["uint8-fine", "uint4-fine"])
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
#: Offsets of the parts of one encoded block of float32.
COUNTS_AT, SLOTS_AT = 8, 8 + BLOCK_ELEMENTS // RUN
CODES_AT = SLOTS_AT + BLOCK_SLOTS


def normal(count: int, seed: int = 0, dtype: str = "float32") -> Array:
    return np.random.default_rng(seed).standard_normal(count).astype(dtype)


def encoded(name: str, values: Array) -> Array:
    coder = coder_of(name, values.dtype.name)
    out = np.zeros(coder.encoded_size(Phase.REDUCE_SCATTER, values.size), np.uint8)
    coder.encode_own(values, out)
    return out


def decoded(name: str, data: Array, count: int) -> Array:
    out = np.zeros(count, np.float32)
    coder_of(name, "float32").decode(data, out)
    return out


# -- The format of slots ----------------------------------------------------------------------


def written(codes: Array, code_max: int, limit: int) -> tuple[list[int], int | None, Array, Array]:
    """Values outside of each row, slots taken, counts, slots."""
    row_count, length = codes.shape
    counts = np.full(row_count * run_count(length), 0xAB, np.uint8)
    slots = np.full(row_count * limit, 0xAB, np.uint8)
    scratch = np.ones(codes.size, np.uint8)
    used, taken = write_slots(codes, code_max, scratch, limit, counts, slots)
    return used.tolist(), taken, counts, slots


@given(
    runs=st.integers(0, 5),
    rest=st.integers(1, RUN),
    row_count=st.integers(1, 3),
    limit=st.integers(0, 60),
    code_max=st.sampled_from([15, 255]),
    data=st.data(),
)
def test_slots_tell_the_places_that_were_written(
    runs: int, rest: int, row_count: int, limit: int, code_max: int, data: st.DataObject
) -> None:
    length = runs * RUN + (rest if row_count == 1 else RUN)  # rows that follow start with a run
    size = length * row_count
    places = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=min(size, 80))))
    is_below = [bool(place % 3) for place in places]
    codes = np.arange(size, dtype=HALF) % (code_max + 1)
    codes[places] += np.where(is_below, -code_max - 1, code_max + 1).astype(np.uint16)

    used, taken, counts, slots = written(codes.reshape(row_count, length), code_max, limit)

    rows = [place // length for place in places]
    assert used == [rows.count(row) for row in range(row_count)]
    if max(used) > limit:
        assert taken is None
        assert (slots == 0xAB).all()
        return
    assert taken == len(places)
    assert (slots[taken:] == 0xAB).all()
    found, told = read_slots(counts, slots, size)
    assert found.tolist() == places
    assert (told >= BELOW).tolist() == is_below


@pytest.mark.parametrize(
    ("counts", "slots", "places"),
    [
        ([2, 0, 1], [0, 127, 5], [0, 127, 261]),
        ([0, 0, 0], [9, 9, 9], []),
        ([0, 1, 0], [3 + BELOW], [131]),
        ([0, 0, 1], [43], [299]),
    ],
)
def test_a_slot_is_a_place_in_its_run(
    counts: list[int], slots: list[int], places: list[int]
) -> None:
    found, _ = read_slots(np.array(counts, np.uint8), np.array(slots, np.uint8), 300)

    assert found.tolist() == places


@pytest.mark.parametrize(
    ("counts", "slots"),
    [
        ([0, 4, 0], [1, 2, 3]),
        ([255, 255, 255], [1, 2, 3]),
        ([2, 0, 0], [7, 7, 0]),
        ([2, 0, 0], [7, 7 + BELOW, 0]),
        ([0, 2, 0], [9, 8, 0]),
        ([0, 0, 1], [44, 0, 0]),
    ],
    ids=["too many", "far too many", "twice", "both sides", "back", "beyond the end"],
)
def test_slots_that_nobody_writes_are_refused(counts: list[int], slots: list[int]) -> None:
    with pytest.raises(WireError, match="slots"):
        read_slots(np.array(counts, np.uint8), np.array(slots, np.uint8), 300)


def test_slots_are_in_proportion_and_none_in_short_blocks() -> None:
    assert slot_count(2048, 2048, 60) == 60
    assert slot_count(1024, 2048, 60) == 30
    assert slot_count(255, 2048, 60) == 0
    assert slot_count(256, 2048, 60) == 7


# -- Accuracy ---------------------------------------------------------------------------------


@every_dtype
@every_codec
def test_a_few_values_far_out_cost_the_others_little(name: str, dtype: str) -> None:
    """Their block has a step of a third of the range at most, where the range is half theirs."""
    quiet = normal(BLOCK_ELEMENTS, 1, dtype)
    wild = quiet.copy()
    wild[7::101] *= 3

    reach = float(wild.max() - wild.min())
    bound = find_codec(name).error_bound(float(wild.min()), float(wild.max()))
    error = np.abs(round_trip(name, wild).astype(np.float64) - wild)

    assert error.max() <= bound * 0.55
    assert error.max() <= bound / reach * (quiet.max() - quiet.min()) * 1.01


@every_codec
@pytest.mark.parametrize("count", [300, 1000, 2047, 2048])
def test_normal_data_are_off_by_less_than_the_bound(name: str, count: int) -> None:
    for seed in range(5):
        values = normal(count, seed)
        bound = find_codec(name).error_bound(float(values.min()), float(values.max()))

        assert np.abs(round_trip(name, values) - values).max() <= bound * 0.9


@every_codec
@pytest.mark.parametrize("outliers", [0, 1, 30, *range(BLOCK_SLOTS - 2, BLOCK_SLOTS + 3), 100, 500])
def test_any_number_of_values_far_out_comes_back(name: str, outliers: int) -> None:
    """With too many of them for the slots the window has them all, and the bound still holds."""
    values = normal(BLOCK_ELEMENTS, 2)
    places = np.random.default_rng(3).permutation(BLOCK_ELEMENTS)[:outliers]
    values[places] = np.where(places % 2, 9.0, -9.0) + normal(outliers, 4) * 0.1
    bound = find_codec(name).error_bound(float(values.min()), float(values.max()))

    back = round_trip(name, values)

    assert np.abs(back - values).max() <= bound * 1.00001


@pytest.mark.parametrize("places", [[0], [2047], [0, 2047], [0, 1, 2, 3], [126, 253, 380], [1000]])
@pytest.mark.parametrize("value", [2.5, -2.5])
def test_a_value_outside_is_found_wherever_it_is(places: list[int], value: float) -> None:
    values = np.linspace(-1, 1, BLOCK_ELEMENTS, dtype=np.float32)
    values[places] = value

    back = round_trip("uint8-fine", values)

    assert encoded("uint8-fine", values)[SLOTS_AT:CODES_AT].any()
    assert np.abs(back - values).max() <= 0.0045


@pytest.mark.parametrize("period", [64, 128, 2, 3])
def test_columns_of_larger_scale_come_back_within_the_bound(period: int) -> None:
    """Where what is far out is all in one group, the first guess of a window is far off."""
    values = normal(BLOCK_ELEMENTS * 3, 7)
    values[::period] *= 8
    bound = find_codec("uint8-fine").error_bound(float(values.min()), float(values.max()))

    assert np.abs(round_trip("uint8-fine", values) - values).max() <= bound * 1.00001


def test_zeros_outside_of_the_window_come_back_as_zeros() -> None:
    values = normal(BLOCK_ELEMENTS, 5) + 6
    values[[3, 700, 2000]] = 0

    back = round_trip("uint8-fine", values)

    assert (back[[3, 700, 2000]] == 0).all()
    assert encoded("uint8-fine", values)[SLOTS_AT:CODES_AT].any()


def three_peers(kind: str) -> list[Array]:
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(1 << 18) for _ in range(3)]
    if kind == "wide":
        arrays = [values * 10 ** rng.uniform(-3, 0, values.size) for values in arrays]
    if kind == "offset":
        arrays = [values + 1000 for values in arrays]
    return [values.astype(np.float32) for values in arrays]


def largest_error(name: str, arrays: list[Array]) -> float:
    """Of an all-reduce, as a share of the root mean square of the sum (less its mean)."""
    wanted = np.sum([values.astype(np.float64) for values in arrays], axis=0)
    found = ring_all_reduce(arrays, find_codec(name)).results[0]
    return float(np.abs(found - wanted).max() / wanted.std())


@pytest.mark.parametrize(("kind", "usual"), [("normal", 0.09), ("wide", 0.26), ("offset", 0.09)])
def test_three_peers_are_off_by_a_quarter_of_what_is_usual(kind: str, usual: float) -> None:
    arrays = three_peers(kind)

    assert largest_error("uint8-fine", arrays) <= usual / 4 < largest_error("uint8", arrays)


def test_an_offset_is_never_the_end_of_four_bits() -> None:
    assert largest_error("uint4-fine", three_peers("offset")) <= 0.5


# -- Hostile bytes ----------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), count=st.integers(0, BLOCK_SLOTS))
def test_slots_move_values_by_one_window_and_nothing_else(seed: int, count: int) -> None:
    values = normal(BLOCK_ELEMENTS, 6)
    data = encoded("uint8-fine", values)
    data[COUNTS_AT:CODES_AT] = 0
    plain = decoded("uint8-fine", data, BLOCK_ELEMENTS)
    rng = np.random.default_rng(seed)
    places = np.sort(rng.permutation(BLOCK_ELEMENTS)[:count])
    data[COUNTS_AT:SLOTS_AT] = np.bincount(places // RUN, minlength=BLOCK_ELEMENTS // RUN)
    data[SLOTS_AT : SLOTS_AT + count] = places % RUN | rng.integers(0, 2, count) * BELOW
    window = 256 * float(data[:4].view(np.float32)[0])

    moved = decoded("uint8-fine", data, BLOCK_ELEMENTS)

    assert np.flatnonzero(moved != plain).tolist() == places.tolist()
    np.testing.assert_allclose(np.abs(moved - plain)[places], window, rtol=1e-5)


@given(parts=st.binary(min_size=CODES_AT - COUNTS_AT, max_size=CODES_AT - COUNTS_AT))
def test_any_counts_and_slots_are_values_or_a_wire_error(parts: bytes) -> None:
    data = encoded("uint8-fine", normal(BLOCK_ELEMENTS, 6))
    data[COUNTS_AT:CODES_AT] = np.frombuffer(parts, np.uint8)
    try:
        found = decoded("uint8-fine", data, BLOCK_ELEMENTS)
    except WireError:
        return
    assert np.isfinite(found).all()
