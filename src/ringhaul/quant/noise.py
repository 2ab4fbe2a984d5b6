"""The dice of stochastic rounding: counter-based, so that a nonce says what they show.

Philox (Salmon et al. 2011) by way of NumPy, whose bit generators give the same numbers in every
version and on every machine. No state is kept between two fills.
"""

from typing import Any

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

from ringhaul.quant.base import BATCH_ELEMENTS, Values

#: Of each 16 random bits so many are used: a float32 code plus noise is then exact, so that
#: what lies on a line of the grid stays there.
NOISE_BITS = 12


class Noise:
    """Random numbers for a batch of at most `BATCH_ELEMENTS`; holds scratch."""

    def __init__(self, seed: int, dtype: np.dtype[Any]) -> None:
        self._seed = seed
        self._values: Values = np.empty(BATCH_ELEMENTS, dtype)

    def dice(self, element_count: int, nonce: int) -> NDArray[np.int16]:
        """16 random bits for each element; the upper `NOISE_BITS` of them count."""
        generator = Philox(key=self._seed, counter=[0, nonce % 2**64, nonce // 2**64 % 2**64, 0])
        words = np.asarray(generator.random_raw(-(-element_count // 4)), dtype="<u8")
        return words.view("<i2")[:element_count]

    def spread(self, dice: NDArray[np.int16]) -> Values:
        """Values evenly spread in (-0.5, 0.5), symmetric, never at the ends; spoils the dice."""
        np.right_shift(dice, 16 - NOISE_BITS, out=dice)
        values = self._values[: dice.size]
        np.copyto(values, dice)
        np.add(values, 0.5, out=values)
        np.multiply(values, 2.0**-NOISE_BITS, out=values)
        return values
