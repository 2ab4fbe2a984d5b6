"""What codecs refuse, from callers and from the wire; codecs of users."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ringhaul.errors import WireError
from ringhaul.ids import ReduceOp
from ringhaul.quant import (
    Codec,
    ErrorFeedback,
    UnfitValueError,
    check_codec,
    codec_names,
    find_codec,
    register_codec,
)
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


# -- Refusals ---------------------------------------------------------------------------------


@every_wide_dtype
@every_block_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_its_place(
    name: str, dtype: str, bad: float
) -> None:
    for at in (0, 700, 150_001, 269_999):
        values = np.ones(270_000, dtype)
        values[at] = bad

        with pytest.raises(UnfitValueError, match=f"element {at}, ") as refused:
            round_trip(name, values)

        assert refused.value.index == at
        assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize("name", ["fp16", "bf16", "raw"])
def test_plain_codecs_carry_nan_and_infinity(name: str) -> None:
    values = np.array([1.0, np.nan, np.inf, -np.inf, 0.0], np.float32)

    np.testing.assert_array_equal(round_trip(name, values), values)


@pytest.mark.parametrize(
    ("name", "fits", "too_large"),
    [("fp16", 65519.0, 65520.0), ("bf16", 3.39e38, 3.4e38), ("fp16", -65519.0, -65520.0)],
)
@every_wide_dtype
def test_a_16_bit_codec_never_makes_infinity(
    name: str, dtype: str, fits: float, too_large: float
) -> None:
    assert np.isfinite(round_trip(name, np.array([0.0, fits], dtype))).all()
    with pytest.raises(UnfitValueError, match="element 1, "):
        round_trip(name, np.array([0.0, too_large, np.inf], dtype))


def test_a_sum_that_overflows_is_refused_at_the_hop() -> None:
    coder = coder_of("uint8", "float32")
    own = np.full(10, 3e38, np.float32)
    out = np.empty(coder.encoded_size(Phase.REDUCE_SCATTER, 10), np.uint8)
    coder.encode_own(own, out)

    with pytest.raises(UnfitValueError, match=r"element 0, inf"):
        coder.pass_on(out.copy(), own, out)


@pytest.mark.parametrize("name", [*LOSSY, "uint8+zstd"])
def test_lossy_codecs_refuse_integers_and_products(name: str) -> None:
    with pytest.raises(TypeError, match="lossy and refuses int32"):
        check_codec(find_codec(name), ReduceOp.SUM, np.dtype(np.int32))
    with pytest.raises(ValueError, match="product"):
        check_codec(find_codec(name), ReduceOp.PROD, np.dtype(np.float32))
    check_codec(find_codec(name), ReduceOp.MAX, np.dtype(np.float32))


def test_lossless_codecs_take_everything() -> None:
    for name in ("raw", "raw+zstd"):
        check_codec(find_codec(name), ReduceOp.PROD, np.dtype(np.int8))


@pytest.mark.parametrize("name", ["int8", "", "uint8+lz4", "+zstd", "uint8+zstd+zstd", "UINT8"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match='there are "raw", "fp16", "bf16", "uint8"'):
        find_codec(name)


@pytest.mark.parametrize("codec", [None, 8, object(), Codec])
def test_what_is_no_codec_is_refused(codec: object) -> None:
    with pytest.raises(TypeError, match="a name or a"):
        find_codec(codec)


# -- Codecs of users --------------------------------------------------------------------------


class SignCodec:
    """One byte a value: its sign."""

    name = "sign-test"
    is_lossy = True

    def make_coder(self, dtype: np.dtype[Any]) -> "SignCodec":
        return self

    def error_bound(self, low: float, high: float) -> float:
        return max(abs(low), abs(high)) + 1

    def encoded_size(self, element_count: int) -> int:
        return element_count

    def encode(self, values: Array, out: Array, nonce: int) -> None:
        np.copyto(out, np.sign(values) + 1, casting="unsafe")

    def decode(self, data: Array, out: Array) -> None:
        np.copyto(out, data)
        np.subtract(out, 1, out=out)


def test_a_registered_codec_is_found_by_name_and_works() -> None:
    codec = SignCodec()
    register_codec(codec)
    register_codec(codec)  # twice the same is no harm

    assert find_codec("sign-test") is codec
    assert find_codec("sign-test+zstd").name == "sign-test+zstd"
    assert "sign-test" in codec_names()
    assert round_trip("sign-test", np.array([3.0, -2.0, 0.0], np.float32)).tolist() == [1, -1, 0]
    with pytest.raises(ValueError, match="already"):
        register_codec(SignCodec())


@pytest.mark.parametrize("name", ["", "a+b", "a\n"])
def test_a_codec_with_no_proper_name_is_not_registered(name: str) -> None:
    codec = SignCodec()
    codec.name = name

    with pytest.raises(ValueError, match="name is printable"):
        register_codec(codec)


@pytest.mark.parametrize(
    "name", ["", "a\ud800", "a\n", "a" * 65], ids=["none", "half", "line", "long"]
)
def test_a_codec_whose_name_no_message_can_carry_is_refused(name: str) -> None:
    codec = SignCodec()
    codec.name = name

    with pytest.raises(ValueError, match="printable, of 1 to 64 characters"):
        find_codec(codec)


def test_a_name_that_is_too_long_with_its_suffix_is_refused() -> None:
    codec = SignCodec()
    codec.name = "a" * 60
    register_codec(codec)

    assert find_codec("a" * 60) is codec
    with pytest.raises(ValueError, match="1 to 64 characters"):
        find_codec("a" * 60 + "+zstd")
    with pytest.raises(ValueError, match="1 to 64 characters"):
        find_codec(ErrorFeedback(codec))


def test_a_codec_whose_name_is_no_string_is_refused() -> None:
    codec = SignCodec()
    codec.name = None  # type: ignore[assignment]

    with pytest.raises(TypeError, match="name is a string, not None"):
        find_codec(codec)


@pytest.mark.parametrize(
    "why", ["bad \ud800 text", "two\nlines", "long" * 1000], ids=["half", "lines", "long"]
)
def test_a_refusal_is_a_text_that_can_be_sent(why: str) -> None:
    text = str(UnfitValueError("mine", 3, 1.0, why).moved(4))

    assert text.startswith('codec "mine" cannot carry element 7, 1.0: ')
    assert text.encode().isascii()
    assert text.isprintable()
    assert len(text) <= 1000


def test_a_name_cannot_be_registered_in_place_of_a_codec() -> None:
    with pytest.raises(TypeError):
        register_codec("uint8")  # type: ignore[arg-type]


# -- Hostile bytes ----------------------------------------------------------------------------


@given(
    name=st.sampled_from([*LOSSY, "raw"]),
    dtype=st.sampled_from(FLOATS),
    count=st.integers(1, 1500),
    data=st.data(),
)
def test_any_bytes_are_values_or_a_wire_error(
    name: str, dtype: str, count: int, data: st.DataObject
) -> None:
    coder = coder_of(name, dtype)
    size = coder.encoded_size(Phase.ALL_GATHER, count)
    seed = data.draw(st.integers(0, 2**32))
    payload = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    header = data.draw(st.binary(max_size=32))
    payload[: len(header)] = np.frombuffer(header, np.uint8)[:size]
    out = np.zeros(count, element_dtype(dtype))
    again = np.zeros(count, element_dtype(dtype))
    try:
        coder.decode(payload, out)
    except WireError:
        return
    coder_of(name, dtype).decode(payload, again)

    assert out.tobytes() == again.tobytes()
    if name in BLOCKS and dtype in WIDE:
        assert np.isfinite(out).all()


@every_block_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_scales_that_are_not_finite_are_refused(name: str, bad: float, place: int) -> None:
    coder = coder_of(name, "float32")
    payload = np.zeros(coder.encoded_size(Phase.ALL_GATHER, 10), np.uint8)
    payload[4 * place : 4 * place + 4] = np.frombuffer(np.float32(bad).tobytes(), np.uint8)

    with pytest.raises(WireError, match="not finite"):
        coder.decode(payload, np.empty(10, np.float32))


def test_a_zero_point_out_of_range_is_refused() -> None:
    coder = coder_of("uint8-zp", "float32")
    payload = np.zeros(coder.encoded_size(Phase.ALL_GATHER, 10), np.uint8)
    payload[4:8] = np.frombuffer(np.float32(1e9).tobytes(), np.uint8)

    with pytest.raises(WireError, match="zero points"):
        coder.decode(payload, np.empty(10, np.float32))


@pytest.mark.parametrize("name", [*LOSSY, "raw", "raw+zstd", "uint8+zstd"])
@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_payload_of_another_size_is_refused(name: str, wrong: int) -> None:
    coder = coder_of(name, "float32")
    size = coder.encoded_size(Phase.ALL_GATHER, 100) + wrong

    with pytest.raises(WireError):
        coder.decode(bytes(size), np.empty(100, np.float32))
    with pytest.raises(WireError):
        coder.decode(b"", np.empty(100, np.float32))
