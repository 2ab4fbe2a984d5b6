"""One encoding: sizes, bounds, zeros, extremes, dice."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ringhaul.quant import BATCH_ELEMENTS, UnfitValueError, find_codec
from ringhaul.quant.base import quiet_arithmetic
from ringhaul.quant.blocks import UINT4_BLOCK_ELEMENTS, UINT8_BLOCK_ELEMENTS
from ringhaul.quant.fine import BLOCK_ELEMENTS as FINE_BLOCK_ELEMENTS
from ringhaul.quant.slots import SLOTTED_MIN
from ringhaul.ring.plan import Phase
from ringhaul.ring.reduce import element_dtype
from ringhaul.testing.codec_ring import coder_of, round_trip

Array = NDArray[Any]
FLOATS = ("float16", "bfloat16", "float32", "float64")
WIDE = ("float32", "float64")
BLOCKS = ("uint8", "uint8-zp", "uint8-sr", "uint4", "uint4-sr", "uint8-fine", "uint4-fine")
LOSSY = (*BLOCKS, "fp16", "bf16")
every_block_codec = pytest.mark.parametrize("name", BLOCKS)
every_wide_dtype = pytest.mark.parametrize("dtype", WIDE)
BLOCK_ENDS = (SLOTTED_MIN, UINT4_BLOCK_ELEMENTS, UINT8_BLOCK_ELEMENTS, FINE_BLOCK_ELEMENTS)
COUNTS = sorted(
    {1, 2, 3, 15, BATCH_ELEMENTS - 1, BATCH_ELEMENTS, BATCH_ELEMENTS + 1, 2 * BATCH_ELEMENTS + 7}
    | {n + k for n in BLOCK_ENDS for k in (-1, 0, 1)}
)


def slack(values: Array) -> float:
    """The rounding of float32 or float64 arithmetic itself, as `Codec.error_bound` says."""
    unit = 2.0**-53 if values.dtype == np.float64 else 2.0**-24
    return 4 * unit * float(np.max(np.abs(values), initial=0))


def assert_within_bounds(name: str, values: Array, back: Array) -> None:
    block = block_of(name)
    if block is None:  # per value: compare those of like magnitude together, for speed
        order = np.argsort(np.abs(values.astype(np.float64)), kind="stable")
        values, back, block = values[order], back[order], max(1, values.size // 100)
    codec = find_codec(name)
    for start in range(0, values.size, block):
        part = values[start : start + block]
        bound = codec.error_bound(float(part.min()), float(part.max()))
        error = np.abs(part.astype(np.float64) - back[start : start + block].astype(np.float64))
        # float16 and bfloat16 are widened exactly, then computed with in float32
        assert error.max() <= bound + slack(part.astype(back.dtype)), start


def block_of(name: str) -> int | None:
    if name.endswith("-fine"):
        return FINE_BLOCK_ELEMENTS
    if name.startswith("uint4"):
        return UINT4_BLOCK_ELEMENTS
    return UINT8_BLOCK_ELEMENTS if name.startswith("uint8") else None


def adversarial(kind: str, count: int, seed: int) -> Array:
    """float64 arrays that break careless quantizers; all within the range of float32."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(count)
    made: dict[str, Array] = {
        "normal": normal,
        "heavy": normal * np.exp(3 * rng.standard_normal(count)),
        "offset": 1e6 + normal,
        "negative offset": -1e4 - np.abs(normal),
        "sparse": normal * (rng.random(count) < 0.02),
        "mask": (rng.random(count) < 0.5) * 1.0,
        "one spike": np.where(np.arange(count) == count // 2, 1e30, normal),
        "tiny": normal * 1e-42,
        "small": normal * 1e-34,
        "huge": np.clip(normal, -1, 1) * 3.4028234663852886e38,
        "steps": np.repeat(normal[: count // 100 + 1], 100)[:count],
        "positive": np.abs(normal),
        "one sided near zero": np.abs(normal) + 1e-37,
        "few ulps": 1e6 + 0.0625 * rng.integers(0, 6, count),
    }
    return made[kind]


KINDS = (
    "normal", "heavy", "offset", "negative offset", "sparse", "mask", "one spike", "tiny",
    "small", "huge", "steps", "positive", "one sided near zero", "few ulps",
)  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [*LOSSY, "raw", "raw+zstd", "uint8+zstd"])
def test_any_count_of_any_dtype_comes_back_within_the_bound(name: str, dtype: str) -> None:
    for count in COUNTS:
        values = np.random.default_rng(count).standard_normal(count).astype(element_dtype(dtype))

        assert_within_bounds(name, values, round_trip(name, values))


@given(
    name=st.sampled_from(LOSSY),
    dtype=st.sampled_from(WIDE),
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 3000),
    seed=st.integers(0, 2**32),
)
def test_the_error_bound_holds_for_adversarial_data(
    name: str, dtype: str, kind: str, count: int, seed: int
) -> None:
    values = adversarial(kind, count, seed).astype(dtype)
    if name == "fp16" and np.abs(values).max() >= 65520:
        with pytest.raises(UnfitValueError):
            round_trip(name, values)
        return
    if name == "bf16" and np.abs(values).max() >= 3.396e38:
        with pytest.raises(UnfitValueError):
            round_trip(name, values)
        return

    back = round_trip(name, values, nonce=seed)

    assert np.isfinite(back).all()
    assert_within_bounds(name, values, back)


@given(
    name=st.sampled_from(BLOCKS),
    values=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40
    ),
)
def test_the_error_bound_holds_for_whatever_hypothesis_finds(
    name: str, values: list[float]
) -> None:
    array = np.array(values, np.float32)

    back = round_trip(name, array)

    assert np.isfinite(back).all()
    assert_within_bounds(name, array, back)


@every_wide_dtype
@every_block_codec
@pytest.mark.parametrize("kind", ["sparse", "mask", "small", "one spike", "heavy"])
def test_zeros_come_back_as_zeros(name: str, dtype: str, kind: str) -> None:
    values = adversarial(kind, 5000, 1).astype(dtype)
    values[::3] = 0

    back = round_trip(name, values)

    assert not back[values == 0].any()


@every_wide_dtype
@every_block_codec
def test_zeros_come_back_as_zeros_beside_blocks_that_are_far_from_zero(
    name: str, dtype: str
) -> None:
    values = 1000 + adversarial("normal", 6000, 1)
    values[3000:] -= 1000
    values[::3] = 0
    values[:1024] = 7.25
    values = values.astype(dtype)

    back = round_trip(name, values)

    assert not back[values == 0].any()
    assert_within_bounds(name, values, back)


@every_wide_dtype
@every_block_codec
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.1, -3.3e-20, 1e-30, 1234567.0, -3.4e37])
def test_constant_blocks_come_back_exactly(name: str, dtype: str, value: float) -> None:
    values = np.full(2500, value, dtype)

    back = round_trip(name, values)

    assert (back == values).all()


@every_block_codec
def test_no_result_depends_on_how_a_cpu_treats_subnormal_numbers(name: str) -> None:
    smallest = float(np.finfo(np.float32).smallest_normal)
    for top in (-1e-39, -1e-38, 1e-39, 0.0):
        values = np.linspace(-1e-37, top, 3000).astype(np.float32)

        back = round_trip(name, values)

        assert (np.abs(back[back != 0]) >= smallest).all()
        assert_within_bounds(name, values, back)


@every_block_codec
def test_the_largest_numbers_of_all_come_back(name: str) -> None:
    largest = np.finfo(np.float32).max
    for values in ([largest, -largest], [largest] * 3, [-largest, 0], [largest / 2, largest]):
        array = np.array(values, np.float32)

        back = round_trip(name, array)

        assert np.isfinite(back).all()
        assert_within_bounds(name, array, back)


def test_float64_keeps_what_float32_could_not_hold() -> None:
    values = np.array([1e300, -1e300, 5e299, 0.0])

    back = round_trip("uint8", values)

    assert np.abs(back - values).max() <= 2e300 / 508 * 1.0001
    assert back[3] == 0


@pytest.mark.parametrize("name", [*BLOCKS[:2], "uint4", *BLOCKS[-2:], "fp16", "bf16", "raw"])
def test_decoding_and_encoding_again_changes_nothing_more_than_the_bound(name: str) -> None:
    values = adversarial("normal", 3000, 5).astype(np.float32)
    once = round_trip(name, values)

    assert_within_bounds(name, once, round_trip(name, once))


# -- Sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        ("uint8", 3.9),
        ("uint8-zp", 3.9),
        ("uint4", 7.7),
        ("uint8-fine", 3.8),
        ("uint4-fine", 7.3),
    ],
)
def test_a_segment_of_a_mebibyte_is_as_small_as_promised(name: str, ratio: float) -> None:
    coder = coder_of(name, "float32")

    assert (1 << 20) / coder.encoded_size(Phase.ALL_GATHER, 1 << 18) >= ratio


@given(
    name=st.sampled_from([*LOSSY, "raw"]),
    dtype=st.sampled_from(FLOATS),
    count=st.integers(1, 200_000),
)
def test_the_encoded_size_is_that_of_what_is_written(name: str, dtype: str, count: int) -> None:
    coder = coder_of(name, dtype)
    values = np.ones(count, element_dtype(dtype))
    size = coder.encoded_size(Phase.REDUCE_SCATTER, count)
    out = np.full(size + 8, 0xAB, np.uint8)

    assert coder.encode_own(values, out) == size
    assert (out[size:] == 0xAB).all()
    assert coder.is_size(Phase.REDUCE_SCATTER, count, size)
    assert not coder.is_size(Phase.REDUCE_SCATTER, count, size + 1)
    assert not coder.is_size(Phase.REDUCE_SCATTER, count, size - 1)


def test_raw_sends_the_result_in_the_dtype_of_the_array() -> None:
    coder = coder_of("raw", "float16")

    assert coder.encoded_size(Phase.REDUCE_SCATTER, 100) == 400
    assert coder.encoded_size(Phase.ALL_GATHER, 100) == 200


# -- Stochastic rounding ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uint8-sr", "uint4-sr"])
def test_stochastic_rounding_has_no_bias(name: str) -> None:
    values = adversarial("normal", 1024, 3).astype(np.float32)
    total = np.zeros(1024)
    for nonce in range(400):
        total += round_trip(name, values, nonce)

    bound = find_codec(name).error_bound(float(values.min()), float(values.max()))

    # the mean of 400 errors of at most a step, that is of a deviation of half a step
    assert np.abs(total / 400 - values).max() < bound * 0.5 / 20 * 5


@pytest.mark.parametrize("name", ["uint8-sr", "uint4-sr"])
def test_stochastic_rounding_depends_on_the_nonce_alone(name: str) -> None:
    values = adversarial("normal", 70_000, 3).astype(np.float32)

    assert (round_trip(name, values, 5) == round_trip(name, values, 5)).all()
    assert (round_trip(name, values, 5) != round_trip(name, values, 6)).mean() > 0.3


def test_every_batch_has_dice_of_its_own() -> None:
    values = np.tile(adversarial("normal", BATCH_ELEMENTS, 3).astype(np.float32), 2)

    back = round_trip("uint8-sr", values)

    assert (back[:BATCH_ELEMENTS] != back[BATCH_ELEMENTS:]).mean() > 0.3


def test_coders_leave_the_settings_of_numpy_alone() -> None:
    before = (np.getbufsize(), np.geterr())
    round_trip("uint8", np.ones(5000, np.float32))
    with pytest.raises(UnfitValueError):
        round_trip("uint8", np.array([np.nan], np.float32))

    assert (np.getbufsize(), np.geterr()) == before
    with quiet_arithmetic():
        assert np.getbufsize() < before[0]
    assert (np.getbufsize(), np.geterr()) == before


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("name", [*LOSSY, "raw"])
def test_payloads_need_no_alignment(name: str, offset: int) -> None:
    values = adversarial("normal", 3001, 1).astype(np.float32)
    coder = coder_of(name, "float32")
    size = coder.encoded_size(Phase.REDUCE_SCATTER, values.size)
    aligned, shifted = np.empty(size, np.uint8), np.empty(size + offset, np.uint8)
    coder.encode_own(values, aligned)
    coder.encode_own(values, shifted[offset:])
    assert (aligned == shifted[offset:]).all()
    out, again = np.empty(3001, np.float32), np.empty(3001, np.float32)
    zeros = np.zeros(3001, np.float32)

    coder.decode_add(aligned, zeros, out)
    coder.decode_add(shifted[offset:], zeros, again)

    assert (out == again).all()
