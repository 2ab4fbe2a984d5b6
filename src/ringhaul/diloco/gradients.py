"""Pseudo-gradients: differences of parameters, and which of them may be given to others.

Decides what becomes of values that are not finite. An entry that did not change has the
difference 0, an infinite one too (a mask of minus infinities is a buffer of many models). In
what the optimizer steps anything else spoils the whole; in running means only the entry.
"""

import math

import numpy as np

from ringhaul.diloco.outer import FloatArray, blocks
from ringhaul.diloco.parameters import Layout


def subtract(first: FloatArray, second: FloatArray, out: FloatArray) -> None:
    """`first - second`; 0 where both are the same infinity. `out` may be either of them."""
    with np.errstate(all="ignore"):
        for block in blocks(first.size):
            minuend, subtrahend = first[block], second[block]
            is_same = None if is_finite(minuend) else minuend == subtrahend
            np.subtract(minuend, subtrahend, out=out[block])
            if is_same is not None:
                out[block][is_same] = 0.0


def is_finite(values: FloatArray) -> bool:
    """Are they all finite, and not so large that their norm overflows?"""
    with np.errstate(all="ignore"):
        return math.isfinite(float(np.dot(values, values)))


def clear_unfit(values: FloatArray) -> bool:
    """Set what is not finite to 0. Was there anything?"""
    if is_finite(values):
        return False
    is_unfit = ~np.isfinite(values)
    values[is_unfit] = 0.0
    return bool(is_unfit.any())


def unfit_name(layout: Layout, fragment: int, flat: FloatArray) -> str:
    """Which parameter of `fragment` keeps it from being finite: the first one, or the largest."""
    views = {
        name: view for name, view in layout.views(flat).items() if name in layout.names[fragment]
    }
    unfit = [name for name in layout.names[fragment] if not np.isfinite(views[name]).all()]
    largest = max(views, key=lambda name: float(np.max(np.abs(views[name]), initial=0.0)))
    return (unfit or [largest])[0]
