"""The dice of stochastic rounding: counter-based, so that a nonce says what they show.

SplitMix64 (Steele, Lea, Flood 2014): number i is a hash of a start, made of seed and nonce, plus i
times an odd constant. Integer arithmetic, so the same on every machine; no state is kept between
two batches.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringhaul.quant.base import BATCH_ELEMENTS, Values
from ringhaul.ring.twins import find_twin

#: Of each 16 random bits so many are used: a float32 code plus noise is then exact, so that
#: what lies on a line of the grid stays there.
NOISE_BITS = 12
_STRIDE = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_MASK = 2**64 - 1


def start_of(seed: int, nonce: int) -> int:
    """Where the numbers of a nonce start: far from those of any other, in 64 bits."""
    state = seed & _MASK
    for part in (nonce & _MASK, nonce >> 64 & _MASK, _STRIDE):
        state = _mixed(state + part + _STRIDE & _MASK)
    return state


def _mixed(number: int) -> int:
    for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
        number = (number ^ number >> shift) * factor & _MASK
    return number


class Noise:
    """Random numbers for a batch of at most `BATCH_ELEMENTS`; holds scratch."""

    def __init__(self, seed: int, dtype: np.dtype[Any]) -> None:
        self._seed = seed
        self._values: Values = np.empty(BATCH_ELEMENTS, dtype)
        self._words, self._scratch = (np.empty(BATCH_ELEMENTS // 4, np.uint64) for _ in range(2))
        self._offsets: NDArray[np.uint64] | None = None

    def dice(self, element_count: int, nonce: int) -> NDArray[np.int16]:
        """16 random bits for each element; the upper `NOISE_BITS` of them count."""
        words = self._words[: -(-element_count // 4)]
        start = np.uint64(start_of(self._seed, nonce))
        twin = find_twin("roll")
        if twin is not None:
            twin(start, words)
        else:
            self._roll(start, words)
        return words.astype("<u8", copy=False).view("<i2")[:element_count]

    def _roll(self, start: np.uint64, words: NDArray[np.uint64]) -> None:
        if self._offsets is None:
            self._offsets = np.arange(BATCH_ELEMENTS // 4, dtype=np.uint64) * np.uint64(_STRIDE)
        scratch = self._scratch[: words.size]
        np.add(self._offsets[: words.size], start, out=words)
        for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
            np.right_shift(words, np.uint64(shift), out=scratch)
            np.bitwise_xor(words, scratch, out=words)
            if factor != 1:
                np.multiply(words, np.uint64(factor), out=words)

    def spread(self, dice: NDArray[np.int16]) -> Values:
        """Values evenly spread in (-0.5, 0.5), symmetric, never at the ends; spoils the dice."""
        np.right_shift(dice, 16 - NOISE_BITS, out=dice)
        values = self._values[: dice.size]
        np.copyto(values, dice)
        np.add(values, 0.5, out=values)
        np.multiply(values, 2.0**-NOISE_BITS, out=values)
        return values
