"""The dice of stochastic rounding: counter-based, so that a nonce says what they show.

Philox (Salmon et al. 2011) by way of NumPy, whose bit generators give the same numbers in every
version and on every machine. No state is kept between two fills.
"""

from typing import Any

import numpy as np
from numpy.random import Philox

from ringhaul.quant.base import BATCH_ELEMENTS, Values

#: Of each 16 random bits so many are used: a float32 code plus noise is then exact, so that
#: what lies on a line of the grid stays there.
_NOISE_BITS = 12


class Noise:
    """Values evenly spread in (-0.5, 0.5), symmetric, never at the ends."""

    def __init__(self, seed: int, dtype: np.dtype[Any]) -> None:
        self._seed = seed
        self.values: Values = np.empty(BATCH_ELEMENTS, dtype)

    def fill(self, element_count: int, nonce: int) -> None:
        """Write the first `element_count` of `values`."""
        generator = Philox(key=self._seed, counter=[0, nonce % 2**64, nonce // 2**64 % 2**64, 0])
        words = np.asarray(generator.random_raw(-(-element_count // 4)), dtype="<u8")
        dice = words.view(np.int16)[:element_count]
        unused = 16 - _NOISE_BITS
        np.right_shift(dice, unused, out=dice)
        values = self.values[:element_count]
        np.copyto(values, dice)
        np.add(values, 0.5, out=values)
        np.multiply(values, 2.0**-_NOISE_BITS, out=values)
