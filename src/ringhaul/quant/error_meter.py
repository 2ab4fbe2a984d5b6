"""What encoding loses, measured: on request, of one attempt of one operation."""

import math

import numpy as np

from ringhaul.quant.base import Values

#: Squares of values up to these are sound in float32: of smaller ones they vanish.
_SQUARED_MIN, _SQUARED_MAX = 1e-14, 1e14


class ErrorMeter:
    """Sums up what the encodings of one peer lost, in units of the result.

    Attributes:
        largest: the largest absolute difference of an element.
    """

    def __init__(self) -> None:
        self.largest = 0.0
        self._squares = 0.0
        self._element_count = 0

    def add(self, losses: Values, divisor: int) -> None:
        """Take in the losses of a batch, finite, each `divisor` times what the result is off."""
        largest = max(float(losses.max()), -float(losses.min()))
        self.largest = max(self.largest, largest / divisor)
        if not _SQUARED_MIN < largest < _SQUARED_MAX:
            losses = losses.astype(np.float64)
        self._squares += float(np.dot(losses, losses)) / divisor**2
        self._element_count += losses.size

    @property
    def rms(self) -> float:
        """Root of the mean square over all elements that were encoded; 0 if none was."""
        return math.sqrt(self._squares / self._element_count) if self._element_count else 0.0
