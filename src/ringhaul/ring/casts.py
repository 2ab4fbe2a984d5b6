"""float32 to and from the 16-bit floats, in cache-sized blocks, with NumPy's exact results.

ml_dtypes casts bfloat16 at memory speed. NumPy's wheels convert float16 in scalar code, at
0.5 GB/s of float32 and ten times slower where results are subnormal; the few array passes
here do the same at about 2 (widen) and 1 GB/s (narrow), compiled twins at 8 and more. Decides
nothing about what is reduced.
"""

import functools
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ringhaul.ring.twins import find_twin

#: Elements per block: operands and scratch stay in the second-level cache.
BLOCK_ELEMENTS = 64 * 1024

FLOAT16 = np.dtype(np.float16)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

#: Multiplied one after the other: 2**2 in all, and what float16 cannot hold becomes infinity.
_TO_INFINITY = np.float32(2.0**112)
_BACK = np.float32(2.0**-110)
_EXPONENT_BITS = np.uint32(0x7F800000)
#: Exponent of the smallest normal float16, 2**-14: subnormals all round at the same bit.
_SMALLEST_NORMAL_BITS = np.uint32(0x38800000)
#: Added to an exponent: 2**15 times the value, whose last bit is float16's after the sum.
_ROUNDING_BITS = np.uint32(0x07800000)


@functools.cache
def _float16_table() -> NDArray[np.float32]:
    """float32 of each of the 65,536 bit patterns, 256 KiB; made at the first use."""
    table = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    table.setflags(write=False)
    return table


class BlockCast:
    """Converts blocks of at most `BLOCK_ELEMENTS` between float32 and one 16-bit float.

    Holds scratch, so it is for one thread at a time. Arrays are one-dimensional, contiguous,
    and of equal length; input and output do not overlap. Callers switch floating-point
    warnings off: overflow to infinity is a result here.
    """

    def __init__(self, narrow_dtype: np.dtype[Any]) -> None:
        assert narrow_dtype in (FLOAT16, BFLOAT16), narrow_dtype
        self._is_float16 = narrow_dtype == FLOAT16
        self._widen_name = f"widen_{narrow_dtype.name}"
        self._narrow_name = f"narrow_{narrow_dtype.name}"
        self._add_name = f"add_{narrow_dtype.name}"
        if self._is_float16:
            self._positions = np.empty(BLOCK_ELEMENTS, np.intp)
            self._rounded = np.empty(BLOCK_ELEMENTS, np.float32)
            self._bits = np.empty(BLOCK_ELEMENTS, np.uint32)

    def widen(self, values: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Write the exact float32 of each 16-bit value."""
        twin = find_twin(self._widen_name, values, out)
        if twin is not None:
            twin(values.view(np.uint16), out)
            return
        if not self._is_float16:
            np.copyto(out, values, casting="unsafe")
            return
        positions = self._positions[: values.size]
        np.copyto(positions, values.view(np.uint16))
        # No index is ever clipped; the other modes copy or check.
        np.take(_float16_table(), positions, out=out, mode="clip")

    def narrow(self, values: NDArray[np.float32], out: NDArray[Any]) -> None:
        """Write each value rounded to the nearest, ties to even; NaN stays NaN."""
        twin = find_twin(self._narrow_name, values, out)
        if twin is not None and twin(values, out.view(np.uint16)):
            return
        if self._is_float16:
            self._narrow_to_float16(values, out)
        else:
            np.copyto(out, values, casting="unsafe")

    def narrow_at_once(self, values: NDArray[np.float32], out: NDArray[np.uint8]) -> bool:
        """Write 16-bit patterns as bytes, any number of them; False: no twin can."""
        patterns = out.view(np.uint16)
        twin = find_twin(self._narrow_name, values, patterns)
        return twin is not None and bool(twin(values, patterns))

    def add_at_once(
        self, values: NDArray[np.float32], data: NDArray[np.uint8], out: NDArray[np.float32]
    ) -> bool:
        """Write the sums of float32 values and 16-bit patterns; False: no twin can."""
        patterns = data.view(np.uint16)
        twin = find_twin(self._add_name, values, patterns, out)
        if twin is not None:
            twin(values, patterns, out)
        return twin is not None

    def _narrow_to_float16(self, values: NDArray[np.float32], out: NDArray[Any]) -> None:
        """Let a float32 addition round: add the power of two that leaves float16's bits.

        The sum's low bits are then float16's mantissa, a carry included, and its exponent
        is off by a constant that the shift and the mask drop. (Known from the FP16 library
        of M. Dukhan, there for scalars.)
        """
        value_bits = values.view(np.uint32)
        rounded = self._rounded[: values.size]
        rounded_bits = rounded.view(np.uint32)
        bits = self._bits[: values.size]
        np.absolute(values, out=rounded)
        if values.size and rounded_bits.max() > _EXPONENT_BITS:
            # A NaN, whose payload may sit in the bits that get lost. Rare: let NumPy do it.
            np.copyto(out, values, casting="unsafe")
            return
        np.multiply(rounded, _TO_INFINITY, out=rounded)
        np.multiply(rounded, _BACK, out=rounded)
        np.bitwise_and(value_bits, _EXPONENT_BITS, out=bits)
        np.maximum(bits, _SMALLEST_NORMAL_BITS, out=bits)
        np.add(bits, _ROUNDING_BITS, out=bits)
        np.add(rounded, bits.view(np.float32), out=rounded)
        np.right_shift(rounded_bits, np.uint32(13), out=bits)
        np.bitwise_and(bits, np.uint32(0x7C00), out=bits)
        np.bitwise_and(rounded_bits, np.uint32(0x0FFF), out=rounded_bits)
        np.add(bits, rounded_bits, out=bits)
        np.right_shift(value_bits, np.uint32(16), out=rounded_bits)
        np.bitwise_and(rounded_bits, np.uint32(0x8000), out=rounded_bits)
        np.bitwise_or(bits, rounded_bits, out=out.view(np.uint16), casting="unsafe")
