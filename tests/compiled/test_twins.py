"""Compiled kernels give the bits of NumPy's, whatever the data, and decline what they cannot do.

Both are run on the same input. Without numba (the extra "fast") these tests are skipped.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ringhaul.errors import WireError
from ringhaul.ids import ReduceOp
from ringhaul.quant import ErrorFeedback, UnfitValueError, find_codec
from ringhaul.quant.base import BATCH_ELEMENTS, Codec
from ringhaul.ring.plan import Phase
from ringhaul.ring.reduce import element_dtype
from ringhaul.ring.twins import Twin, find_twin, install_twins
from ringhaul.testing.codec_ring import coder_of, ring_all_reduce
from ringhaul.testing.twins import both, installed

pytest.importorskip("numba")

Array = NDArray[Any]
FLOATS = ("float16", "bfloat16", "float32", "float64")
BLOCKS = ("uint8", "uint8-zp", "uint8-sr", "uint4", "uint4-sr", "uint8-fine", "uint4-fine")
LOSSY = (*BLOCKS, "fp16", "bf16")
KINDS = (
    "normal", "heavy", "offset", "negative", "sparse", "spike", "tiny", "subnormal", "huge",
    "steps", "ties", "zeros", "near zero", "columns", "mixture",
)  # fmt: skip


@pytest.fixture(scope="module")
def twins() -> dict[str, Twin]:
    from ringhaul.compiled.table import compile_twins

    return compile_twins()


def made(kind: str, count: int, seed: int, dtype: str) -> Array:
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(count)
    values: dict[str, Array] = {
        "normal": normal,
        "heavy": normal * np.exp(3 * rng.standard_normal(count)),
        "offset": 1000 + normal,
        "negative": -1e4 - np.abs(normal),
        "sparse": normal * (rng.random(count) < 0.02),
        "spike": np.where(np.arange(count) == count // 2, 3e4, normal),
        "tiny": normal * 1e-37,
        "subnormal": normal * 1e-40,
        "huge": np.clip(normal, -1, 1) * 3.4028234663852886e38,
        "steps": np.repeat(normal[: count // 100 + 1], 100)[:count],
        "ties": rng.integers(-255, 256, count) * 0.5,
        "zeros": np.where(rng.random(count) < 0.5, 0.0, -0.0),
        "near zero": np.abs(normal) * 2.0**-100,
        "columns": np.where(np.arange(count) % 64 < 3, 8 * normal, normal),
        "mixture": np.where(rng.random(count) < 0.04, 5 * normal, normal),
    }
    with np.errstate(over="ignore"):
        array = values[kind].astype(element_dtype(dtype))
    finite: Array = np.where(np.isfinite(array.astype(np.float64)), array, array.dtype.type(1))
    return finite.astype(array.dtype)


def encoded(codec: str, dtype: str, values: Array, nonce: int = 0) -> bytes:
    coder = coder_of(codec, dtype)
    out = np.full(coder.encoded_size(Phase.REDUCE_SCATTER, values.size), 0xAB, np.uint8)
    coder.encode_own(values, out, nonce=nonce)
    return out.tobytes()


def decoded(codec: str, dtype: str, data: bytes, own: Array) -> bytes:
    coder = coder_of(codec, dtype)
    result = np.zeros_like(own)
    coder.decode(data, result)
    total = np.zeros(own.size, np.float64 if dtype == "float64" else np.float32)
    coder.decode_add(data, own, total)
    return result.tobytes() + total.tobytes()


# -- Codecs -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    codec=st.sampled_from(LOSSY),
    dtype=st.sampled_from(FLOATS),
    kind=st.sampled_from(KINDS),
    count=st.one_of(st.integers(1, 3000), st.sampled_from([BATCH_ELEMENTS, BATCH_ELEMENTS + 1])),
    seed=st.integers(0, 2**32),
)
def test_encoding_and_decoding_give_the_same_bytes(
    twins: dict[str, Twin], codec: str, dtype: str, kind: str, count: int, seed: int
) -> None:
    values = made(kind, count, seed, dtype)
    own = made("normal", count, seed + 1, dtype)
    used = (f"encode{suffix_of(codec)}",) if codec in BLOCKS else ()
    try:
        plain, fast = both(twins, lambda: encoded(codec, dtype, values, seed), *used)
    except UnfitValueError:
        assert codec in ("fp16", "bf16")
        return
    assert plain == fast

    plain, fast = both(twins, lambda: decoded(codec, dtype, plain, own))
    assert plain == fast


def suffix_of(codec: str) -> str:
    """Of the names of a block codec's twins."""
    return "_fine" if codec.endswith("-fine") else ""


def pattern_of(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("codec", BLOCKS)
def test_what_is_not_finite_is_refused_in_the_same_words(
    twins: dict[str, Twin], codec: str, dtype: str, bad: float
) -> None:
    for at in (0, 17, 2999):
        values = made("normal", 3000, 0, dtype)
        values[at] = bad
        with installed(twins), pytest.raises(UnfitValueError, match=f"element {at}, "):
            encoded(codec, dtype, values)


@settings(deadline=None)
@given(
    codec=st.sampled_from(BLOCKS),
    dtype=st.sampled_from(["float32", "float64"]),
    words=st.lists(
        st.one_of(st.integers(0, 2**32 - 1), st.floats(width=32).map(pattern_of)),
        min_size=2,
        max_size=60,
    ),
)
def test_values_of_any_bits_give_the_same_bytes_or_the_same_refusal(
    twins: dict[str, Twin], codec: str, dtype: str, words: list[int]
) -> None:
    patterns = np.array(words[: len(words) // 2 * 2], np.uint32)
    values = patterns.view(element_dtype(dtype))

    def act() -> bytes | str:
        try:
            return encoded(codec, dtype, values)
        except UnfitValueError as error:
            return str(error)

    plain, fast = both(twins, act)

    assert plain == fast


@settings(deadline=None)
@given(
    codec=st.sampled_from(LOSSY),
    dtype=st.sampled_from(FLOATS),
    count=st.integers(1, 2100),
    seed=st.integers(0, 2**32),
    header=st.binary(max_size=32),
)
def test_any_bytes_decode_to_the_same_bits_or_the_same_error(
    twins: dict[str, Twin], codec: str, dtype: str, count: int, seed: int, header: bytes
) -> None:
    size = coder_of(codec, dtype).encoded_size(Phase.ALL_GATHER, count)
    payload = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    payload[: len(header)] = np.frombuffer(header, np.uint8)[:size]

    def act() -> bytes | str:
        result = np.zeros(count, element_dtype(dtype))
        try:
            coder_of(codec, dtype).decode(payload, result)
        except WireError as error:
            return str(error)
        return result.tobytes()

    plain, fast = both(twins, act)

    if codec in BLOCKS:
        assert plain == fast
    else:  # the payload of a NaN is NumPy's choice, and may differ
        assert_alike(plain, fast, element_dtype(dtype))


def assert_alike(plain: bytes, fast: bytes, dtype: np.dtype[Any]) -> None:
    a, b = (np.frombuffer(data, dtype) for data in (plain, fast))
    same = a.view(np.uint8).reshape(a.size, -1) == b.view(np.uint8).reshape(a.size, -1)
    assert (same.all(axis=1) | (np.isnan(a) & np.isnan(b))).all()


@pytest.mark.parametrize("slots", [[9, 8], [7, 7], [7, 7 + 128], [5, 120]])
def test_slots_that_nobody_writes_are_refused_in_the_same_words(
    twins: dict[str, Twin], slots: list[int]
) -> None:
    """Backwards, twice, on both sides, beyond the end of the last run of 1000 values."""
    payload = np.zeros(coder_of("uint8-fine", "float32").encoded_size(Phase.ALL_GATHER, 1000), "u1")
    counts_at, slots_at = 8, 8 + 8
    payload[counts_at + 7] = 2
    payload[slots_at : slots_at + 2] = slots

    def act() -> str:
        with pytest.raises(WireError, match="slots") as refused:
            coder_of("uint8-fine", "float32").decode(payload, np.zeros(1000, np.float32))
        return str(refused.value)

    plain, fast = both(twins, act)

    assert plain == fast


@pytest.mark.parametrize("factor", [0.5, 0.999, 1.0, 1.001, 2.0])
@pytest.mark.parametrize("codec", ["uint8", "uint8-zp", "uint4", "uint8-fine", "uint4-fine"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_both_take_the_detour_for_huge_numbers_at_the_same_scale(
    twins: dict[str, Twin], codec: str, dtype: str, factor: float
) -> None:
    largest = float(np.finfo(dtype).max)
    for limit in (largest / 1024, largest / 1024 * 255, largest / 2.0**24.6, largest / 2.0**53.6):
        values = np.tile(made("normal", 1024, 1, dtype), 3) * 1e-30
        values[0] = -limit / 2 * factor if limit * factor < largest else largest
        values[1] = limit / 2 * factor if limit * factor < largest else -largest
        plain, fast = both(twins, lambda v=values: encoded(codec, dtype, v))  # type: ignore[misc]
        assert plain == fast
        own = made("normal", values.size, 2, dtype)
        plain, fast = both(twins, lambda d=plain, o=own: decoded(codec, dtype, d, o))  # type: ignore[misc]
        assert plain == fast


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("codec", LOSSY)
def test_arrays_in_odd_places_are_left_to_numpy(
    twins: dict[str, Twin], codec: str, offset: int
) -> None:
    memory = np.zeros(4 * 1500 + 8, np.uint8)
    odd = memory[offset : offset + 6000].view(np.float32)
    odd[:] = made("normal", 1500, 0, "float32")

    plain, fast = both(twins, lambda: encoded(codec, "float32", odd))

    assert plain == fast == encoded(codec, "float32", odd.copy())


@pytest.mark.parametrize("op", ["sum", "avg", "max"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("codec", [*LOSSY, "raw", "uint8+zstd"])
def test_rings_end_with_the_same_bits(
    twins: dict[str, Twin], codec: str, dtype: str, op: str
) -> None:
    arrays = [made("normal", 70_001, seed, dtype) for seed in range(3)]
    arrays[1] = made("heavy", 70_001, 9, dtype).clip(-1e4, 1e4).astype(arrays[0].dtype)

    def act(chosen: Codec | None = None) -> bytes:
        found = ring_all_reduce(arrays, chosen or find_codec(codec), ReduceOp(op))
        return b"".join(result.tobytes() for result in found.results)

    plain, fast = both(twins, act)

    assert plain == fast


@pytest.mark.parametrize("codec", ["uint8", "uint8-fine"])
def test_peers_with_and_without_twins_end_with_the_same_bits(
    twins: dict[str, Twin], codec: str
) -> None:
    """As they may in the middle of a call."""
    arrays = [made("normal", 300_000, seed, "float32") for seed in range(3)]
    wanted = ring_all_reduce(arrays, find_codec(codec)).results[0]
    turn = {"count": 0}

    def now_and_then(twin: Twin) -> Twin:
        def call(*arguments: object) -> object:
            turn["count"] += 1
            return False if turn["count"] % 3 == 0 else twin(*arguments)

        return call

    table = dict(twins)
    for name in (f"encode{suffix_of(codec)}", "is_plain"):
        table[name] = now_and_then(twins[name])
    with installed(table):
        found = ring_all_reduce(arrays, find_codec(codec)).results

    assert turn["count"] > 10
    assert all(result.tobytes() == wanted.tobytes() for result in found)


@pytest.mark.parametrize("codec", ["uint4", "uint4-fine"])
def test_error_feedback_keeps_the_same_residuals(twins: dict[str, Twin], codec: str) -> None:
    arrays = [made("normal", 5000, seed, "float32") for seed in range(2)]

    def act() -> bytes:
        feedback = [ErrorFeedback(codec) for _ in range(2)]
        for _ in range(3):
            ring_all_reduce(arrays, feedback)
        return b"".join(each.state_dict()["test"].tobytes() for each in feedback)

    suffix = suffix_of(codec)
    plain, fast = both(twins, act, f"encode{suffix}", f"decode{suffix}")

    assert plain == fast


# -- The table --------------------------------------------------------------------------------


def test_twins_that_are_installed_later_replace_the_earlier(twins: dict[str, Twin]) -> None:
    odd = np.zeros(9, np.uint8)[1:].view(np.float32)

    with installed({"encode": twins["encode"], "decode": twins["decode"]}):
        install_twins({"decode": twins["decode"]})

        assert find_twin("encode") is None
        assert find_twin("decode") is twins["decode"]
        assert find_twin("decode", odd) is None


def test_nothing_is_compiled_once_twins_are_made(twins: dict[str, Twin]) -> None:
    """A kind of array that nobody thought of must not stall a thread that moves data."""
    with pytest.raises(TypeError, match="No matching definition"):
        twins["pack"](np.zeros(4, np.int64), np.zeros(2, np.uint8))
