"""Sums and powers that have the same bits on every CPU.

BLAS, SIMD sums and the C library's `pow` may round differently from one machine to the next.
What is decided from a norm (a penalty, a clip) has to be decided alike by all members, so here
are a norm and a power that are element-wise IEEE operations in a fixed order.
"""

import math

import numpy as np
from numpy.typing import NDArray

#: Elements folded at a time; a power of two, so that halves fit.
FOLD_COUNT = 32 * 1024


def squared_norm(values: NDArray[np.floating]) -> float:
    """The sum of squares, in float64; the same bits on every CPU.

    Args:
        values: shape (n,), float32 or float64; only read.
    """
    total = 0.0
    folded = np.zeros(FOLD_COUNT, np.float64)
    for start in range(0, values.size, FOLD_COUNT):
        part = values[start : start + FOLD_COUNT]
        folded[: part.size] = part
        folded[part.size :] = 0.0
        np.multiply(folded, folded, out=folded)
        count = FOLD_COUNT
        while count > 1:
            count //= 2
            np.add(folded[:count], folded[count : 2 * count], out=folded[:count])
        total += float(folded[0])
    return total


def norm(values: NDArray[np.floating]) -> float:
    """The Euclidean norm, in float64; the same bits on every CPU."""
    return math.sqrt(squared_norm(values))


def power(base: float, exponent: int) -> float:
    """`base ** exponent` by squaring: multiplications only.

    Args:
        base: any float.
        exponent: 0 or more.
    """
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result
