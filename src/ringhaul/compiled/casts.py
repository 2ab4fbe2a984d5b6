"""float16 and bfloat16, compiled: to and from float32, and sums with float32 accumulation.

16-bit floats come and go as their patterns (uint16). Same bits as `ring/casts.py`. What makes a
16-bit result tells whether it is right: NaN, whose pattern is NumPy's choice, is left to NumPy.
"""

import numpy as np
from numpy.typing import NDArray

from ringhaul.compiled.primitives import as_float, bits, compiled, from_bits, greater, signed

Halves = NDArray[np.uint16]
Singles = NDArray[np.float32]

_INFINITY = np.int32(0x7F800000)
_TINY = np.float32(2.0**-24)
#: Multiplied one after the other: 2**2 in all, and what float16 cannot hold becomes infinity.
_TO_INFINITY = np.float32(2.0**112)
_BACK = np.float32(2.0**-110)


@compiled
def from_float16(pattern: int) -> float:
    """The float32 of a float16."""
    rest = pattern & 0x7FFF
    sign = (pattern & 0x8000) << 16
    exponent = 0x38000000 if rest < 0x7C00 else 0x70000000
    normal = from_bits(sign | ((rest << 13) + exponent))
    tiny = as_float(signed(rest), _TINY) * _TINY
    return normal if rest >= 0x0400 else from_bits(sign | bits(tiny))


@compiled
def to_float16(value: float) -> int:
    """The float16 next to a float32, ties to even; of NaN something else."""
    pattern = bits(value)
    shrunk = from_bits(pattern & 0x7FFFFFFF) * _TO_INFINITY * _BACK
    exponent = max(pattern & 0x7F800000, 0x38800000) + 0x07800000
    rounded = bits(shrunk + from_bits(exponent))
    return ((pattern >> 16) & 0x8000) | (((rounded >> 13) & 0x7C00) + (rounded & 0x0FFF))


@compiled
def from_bfloat16(pattern: int) -> float:
    """The float32 of a bfloat16."""
    return from_bits(pattern << 16)


@compiled
def to_bfloat16(value: float) -> int:
    """The bfloat16 next to a float32, ties to even; of NaN something else."""
    pattern = bits(value)
    return (pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16


@compiled
def magnitude(value: float) -> np.int32:
    """An integer that is above `_INFINITY` for NaN only."""
    return signed(bits(value) & 0x7FFFFFFF)


@compiled
def widen_float16(values: Halves, out: Singles) -> None:
    """Write the float32 of each."""
    for i in range(values.size):
        out[i] = from_float16(values[i])


@compiled
def widen_bfloat16(values: Halves, out: Singles) -> None:
    """Write the float32 of each."""
    for i in range(values.size):
        out[i] = from_bfloat16(values[i])


@compiled
def narrow_float16(values: Singles, out: Halves) -> bool:
    """Write the float16 next to each; False if one is NaN."""
    largest = np.int32(0)
    for i in range(values.size):
        largest = greater(largest, magnitude(values[i]))
        out[i] = to_float16(values[i])
    return bool(largest <= _INFINITY)


@compiled
def narrow_bfloat16(values: Singles, out: Halves) -> bool:
    """Write the bfloat16 next to each; False if one is NaN."""
    largest = np.int32(0)
    for i in range(values.size):
        largest = greater(largest, magnitude(values[i]))
        out[i] = to_bfloat16(values[i])
    return bool(largest <= _INFINITY)


@compiled
def add_float16(received: Singles, own: Halves, out: Singles) -> None:
    """Write float32 sums to memory of their own."""
    for i in range(own.size):
        out[i] = received[i] + from_float16(own[i])


@compiled
def add_bfloat16(received: Singles, own: Halves, out: Singles) -> None:
    """Write float32 sums to memory of their own."""
    for i in range(own.size):
        out[i] = received[i] + from_bfloat16(own[i])


@compiled
def add_to_float16(total: Singles, own: Halves) -> None:
    """Add own values in place."""
    for i in range(own.size):
        total[i] += from_float16(own[i])


@compiled
def add_to_bfloat16(total: Singles, own: Halves) -> None:
    """Add own values in place."""
    for i in range(own.size):
        total[i] += from_bfloat16(own[i])


@compiled
def finish_float16(received: Singles, own: Halves, divisor: np.float32, out: Halves) -> bool:
    """Write sums over `divisor`, rounded once; False if one is NaN."""
    largest = np.int32(0)
    for i in range(own.size):
        value = (received[i] + from_float16(own[i])) / divisor
        largest = greater(largest, magnitude(value))
        out[i] = to_float16(value)
    return bool(largest <= _INFINITY)


@compiled
def finish_bfloat16(received: Singles, own: Halves, divisor: np.float32, out: Halves) -> bool:
    """Write sums over `divisor`, rounded once; False if one is NaN."""
    largest = np.int32(0)
    for i in range(own.size):
        value = (received[i] + from_bfloat16(own[i])) / divisor
        largest = greater(largest, magnitude(value))
        out[i] = to_bfloat16(value)
    return bool(largest <= _INFINITY)
