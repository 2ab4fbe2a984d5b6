"""Codecs of users, right and wrong: whatever they do, the call ends on all members."""

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul import CodecError, Communicator, MeasuredError, connect
from ringhaul.quant import UnfitValueError
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver, together

Array = NDArray[Any]
Ring = Sequence[Driver[Communicator]]


@pytest.fixture(scope="module")
def pair() -> Iterator[Ring]:
    with Cluster(lambda address: connect(address, min_world_size=2)) as cluster:
        yield cluster.drivers(2)


class CopyCoder:
    """Writes values as they are."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    def encoded_size(self, element_count: int) -> int:
        return element_count * self.dtype.itemsize

    def encode(self, values: Array, out: Array, nonce: int) -> None:
        out[:] = values.view(np.uint8)

    def decode(self, data: Array, out: Array) -> None:
        out[:] = data.view(out.dtype)


class CopyCodec:
    name = "copy"
    is_lossy = True

    def make_coder(self, dtype: np.dtype[Any]) -> CopyCoder:
        return CopyCoder(dtype)

    def error_bound(self, low: float, high: float) -> float:
        return 0.0


def errors_of(ring: Ring, codec: CopyCodec, count: int = 1000) -> list[BaseException | None]:
    """How the call ends on each member; then all of them can do the next one."""

    def act(comm: Communicator) -> None:
        comm.all_reduce(np.ones(count, np.float32), codec=codec, timeout_s=PATIENCE_S)

    futures: list[Future[None]] = [driver.begin(act) for driver in ring]
    errors = [future.exception(PATIENCE_S) for future in futures]
    world_size = len(ring)
    array = [np.ones(3) for _ in ring]
    together(ring, lambda comm: comm.all_reduce(array[comm.rank]))
    assert all((each == world_size).all() for each in array)
    return errors


def assert_codec_errors(errors: list[BaseException | None], text: str) -> None:
    for error in errors:
        assert type(error) is CodecError
        assert text in str(error)


@pytest.mark.parametrize("why", ["bad \ud800 text", "long" * 1000], ids=["half", "long"])
def test_a_refusal_of_any_text_ends_the_call_for_all(pair: Ring, why: str) -> None:
    class Refusing(CopyCoder):
        def encode(self, values: Array, out: Array, nonce: int) -> None:
            raise UnfitValueError("copy", 3, 1.0, why)

    class RefusingCodec(CopyCodec):
        def make_coder(self, dtype: np.dtype[Any]) -> CopyCoder:
            return Refusing(dtype)

    assert_codec_errors(errors_of(pair, RefusingCodec()), 'codec "copy" cannot carry element')


def test_a_codec_whose_name_no_message_can_carry_is_refused_at_once(pair: Ring) -> None:
    codec = CopyCodec()
    codec.name = "x\ud800"
    for error in errors_of(pair, codec):
        assert type(error) is ValueError


@pytest.mark.parametrize("dtype", ["int8", "int64", "float16", "float32"])
def test_what_a_lossless_codec_loses_is_nothing_in_any_dtype(pair: Ring, dtype: str) -> None:
    class LosslessCodec(CopyCodec):
        is_lossy = False

    arrays = [np.full(1000, driver.comm.rank + 1, dtype) for driver in pair]
    own = {driver.comm.rank: array for driver, array in zip(pair, arrays, strict=True)}
    codec = LosslessCodec()
    infos = together(
        pair, lambda comm: comm.all_reduce(own[comm.rank], codec=codec, measure_error=True)
    )

    assert [info.codec_error for info in infos] == [MeasuredError(0.0, 0.0)] * 2
    assert all((array == 3).all() for array in arrays)


class Faulty(CopyCoder):
    """Does one thing wrong, from the first batch on."""

    def __init__(self, dtype: np.dtype[Any], fault: str) -> None:
        super().__init__(dtype)
        self.fault = fault

    def encoded_size(self, element_count: int) -> Any:  # noqa: ANN401 - also what is no size
        sizes = {"zero": 0, "negative": -1, "text": "12", "huge": 1 << 40}
        if self.fault == "size":
            raise KeyError(element_count)
        return sizes.get(self.fault, super().encoded_size(element_count))

    def encode(self, values: Array, out: Array, nonce: int) -> None:
        if self.fault == "encode":
            raise ValueError("my encode is broken \ud800")
        if self.fault == "no index":
            raise UnfitValueError("copy", "x", 1.0, "of no index")  # type: ignore[arg-type]
        super().encode(values, out, nonce)

    def decode(self, data: Array, out: Array) -> None:
        if self.fault == "decode":
            raise IndexError("my decode is broken")
        super().decode(data, out)


class FaultyCodec(CopyCodec):
    def __init__(self, fault: str) -> None:
        self.fault = fault

    def make_coder(self, dtype: np.dtype[Any]) -> CopyCoder:
        if self.fault == "make":
            raise RuntimeError("no coder today")
        if self.fault == "nothing":
            return None  # type: ignore[return-value]
        return Faulty(dtype, self.fault)


FAULTS = {
    "make": "failed in make_coder: RuntimeError: no coder today",
    "nothing": "failed in make_coder: TypeError: it gave a NoneType",
    "size": "failed in encoded_size: KeyError: 500",
    "zero": "failed in encoded_size: ValueError: 0 bytes for 500 elements",
    "negative": "failed in encoded_size: ValueError: -1 bytes",
    "text": "failed in encoded_size: TypeError: 'str'",
    "huge": "makes 1099511627776 bytes of 500 elements",
    "encode": "failed in encode: ValueError: my encode is broken \\ud800",
    "no index": "failed in encode: UnfitValueError",
    "decode": "failed in decode: IndexError: my decode is broken",
}


@pytest.mark.parametrize(("fault", "text"), FAULTS.items(), ids=FAULTS)
def test_whatever_a_codec_raises_fails_the_call_for_all_and_nothing_else(
    pair: Ring, fault: str, text: str
) -> None:
    assert_codec_errors(errors_of(pair, FaultyCodec(fault)), f'codec "copy" {text}')


@pytest.mark.parametrize("fault", ["make", "encode", "zero", "decode"])
def test_one_member_whose_codec_fails_fails_the_call_for_all(pair: Ring, fault: str) -> None:
    codecs = {pair[0].comm.rank: FaultyCodec(fault), pair[1].comm.rank: CopyCodec()}
    array = np.ones(300_000, np.float32)

    def act(comm: Communicator) -> None:
        comm.all_reduce(array, out=np.empty_like(array), codec=codecs[comm.rank], timeout_s=60)

    futures = [driver.begin(act) for driver in pair]
    errors = [future.exception(PATIENCE_S) for future in futures]

    assert_codec_errors(errors, f'{pair[0].comm.peer_id}: codec "copy" failed in')
    assert errors_of(pair, CopyCodec()) == [None, None]


def test_a_codec_without_a_hash_works(pair: Ring) -> None:
    @dataclasses.dataclass
    class Plain(CopyCodec):
        bits: int = 8

    assert Plain.__hash__ is None
    assert errors_of(pair, Plain()) == [None, None]
