"""Constants of block quantizers, for each dtype that they compute in; what headers may say.

Part of the wire format: peers with other constants would decode other bits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ringhaul.errors import WireError
from ringhaul.quant.base import Values


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Constants of the dtype that a coder computes in."""

    bits: np.dtype[Any]  # integers of the same width
    #: Added to a number of less than 2**22 (2**51), leaves it rounded in the low bits.
    rounder: float
    step_min: float
    #: Blocks that come so near to zero count as reaching it: all sums of step and origin are
    #: then zero or normal numbers.
    near_zero: float
    #: Smallest step, as a share of the largest value, if values are multiples of it.
    multiple_min: float
    largest: float


#: By the dtype of the values.
ARITHMETIC = {
    np.dtype(np.float32): Arithmetic(
        np.dtype(np.int32),
        1.5 * 2.0**23,
        2.0**-126,
        2.0**-100,
        2.0**-21,
        float(np.finfo(np.float32).max),
    ),
    np.dtype(np.float64): Arithmetic(
        np.dtype(np.int64),
        1.5 * 2.0**52,
        2.0**-1022,
        2.0**-900,
        2.0**-50,
        float(np.finfo(np.float64).max),
    ),
}
#: Decoding takes a detour by this factor where a result might overflow on the way.
HEADROOM = 1024.0


def largest_magnitude(codec: str, header: Values, scratch: Values) -> float:
    """Of the numbers of a header of steps and origins; `scratch` is as long or longer.

    Raises:
        WireError: the header is none that `encode` writes, and might end in no number.
    """
    magnitudes = np.absolute(header, out=scratch[: header.size])
    largest = np.maximum.reduce(magnitudes)
    if not largest < np.inf:
        raise WireError(f'scales of codec "{codec}" that are not finite')
    return float(largest)
