"""Codecs without scales: the values themselves, or rounded to a 16-bit float.

NaN and infinity are carried; a finite value that float16 or bfloat16 would turn into infinity
is refused, because infinity would then be our doing and not the caller's.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ringhaul.quant.base import Bytes, Coder, UnfitValueError, Values
from ringhaul.ring.casts import BFLOAT16, BLOCK_ELEMENTS, FLOAT16, BlockCast

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class RawCodec:
    """The bytes of the values; loses nothing."""

    name: str = "raw"
    is_lossy: bool = False

    def make_coder(self, dtype: np.dtype[Any]) -> Coder:
        return _RawCoder(dtype)

    def error_bound(self, low: float, high: float) -> float:
        return 0.0


class _RawCoder:
    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._itemsize = dtype.itemsize

    def encoded_size(self, element_count: int) -> int:
        return element_count * self._itemsize

    def encode(self, values: Values, out: Bytes, nonce: int) -> None:
        np.copyto(out, values.view(np.uint8))

    def decode(self, data: Bytes, out: Values) -> None:
        np.copyto(out.view(np.uint8), data)


@dataclass(frozen=True, slots=True)
class CastCodec:
    """Rounds to a 16-bit float: to the nearest, ties to even. float64 by way of float32.

    Errors: fp16 2**-11 of the value, and 2**-25 where it is below 2**-14; from 65520 on
    refused. bf16 2**-8 of the value; from 3.396e38 on refused.
    """

    name: str
    is_lossy: bool = True

    def make_coder(self, dtype: np.dtype[Any]) -> Coder:
        return _CastCoder(self.name, dtype)

    def error_bound(self, low: float, high: float) -> float:
        largest = max(abs(low), abs(high))
        if self.name == "fp16":
            return max(largest * 2.0**-11, 2.0**-25)
        return max(largest * 2.0**-8, 2.0**-134)


FP16 = CastCodec("fp16")
BF16 = CastCodec("bf16")
#: The first magnitude that rounds to infinity.
_OVERFLOW = {"fp16": 65520.0, "bf16": (2.0 - 2.0**-8) * 2.0**127}
_NARROW = {"fp16": FLOAT16, "bf16": BFLOAT16}


class _CastCoder:
    def __init__(self, name: str, dtype: np.dtype[Any]) -> None:
        assert dtype.kind == "f", dtype
        assert dtype.itemsize >= 4, dtype
        self._name = name
        self._narrow = _NARROW[name]
        self._cast = BlockCast(self._narrow)
        self._narrowed = np.empty(BLOCK_ELEMENTS, self._narrow)
        self._single = None if dtype == _FLOAT32 else np.empty(BLOCK_ELEMENTS, np.float32)

    def encoded_size(self, element_count: int) -> int:
        return 2 * element_count

    def encode(self, values: Values, out: Bytes, nonce: int) -> None:
        limit = _OVERFLOW[self._name]
        # NaN makes both comparisons false, and the check below then looks closely.
        if not (values.max() < limit and values.min() > -limit):
            self._check_range(values, limit)
        if self._single is None and self._cast.narrow_at_once(values, out):
            return
        for start in range(0, values.size, BLOCK_ELEMENTS):
            single = values[start : start + BLOCK_ELEMENTS]
            stop = start + single.size
            if self._single is not None:
                np.copyto(self._single[: single.size], single, casting="unsafe")
                single = self._single[: single.size]
            narrowed = self._narrowed[: single.size]
            self._cast.narrow(single, narrowed)
            np.copyto(out[2 * start : 2 * stop], narrowed.view(np.uint8))

    def _check_range(self, values: Values, limit: float) -> None:
        beyond = np.isfinite(values) & (np.absolute(values) >= limit)
        if beyond.any():
            index = int(np.flatnonzero(beyond)[0])
            raise UnfitValueError(
                self._name, index, float(values[index]), f"from {limit:g} on it would be infinity"
            )

    def decode(self, data: Bytes, out: Values) -> None:
        for start in range(0, out.size, BLOCK_ELEMENTS):
            target = out[start : start + BLOCK_ELEMENTS]
            narrowed = self._narrowed[: target.size]
            np.copyto(narrowed.view(np.uint8), data[2 * start : 2 * (start + target.size)])
            single = target if self._single is None else self._single[: target.size]
            self._cast.widen(narrowed, single)
            if self._single is not None:
                np.copyto(target, single)

    def decode_add(self, data: Bytes, own: Values, out: Values) -> bool:
        return self._single is None and self._cast.add_at_once(own, data, out)
