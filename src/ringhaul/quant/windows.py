"""Which part of a block's range its codes cover: where most values lie, chosen from extremes.

A block is dealt out to 64 groups (value i to group i % 64). Their lowest and highest values, in
order, say within a few how many values lie beyond: so windows are chosen without sorting a block.
Decides the grid of a block of a window; who counts what is outside, and tries again, is the coder.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ringhaul.quant.arithmetic import ARITHMETIC, HEADROOM
from ringhaul.quant.base import Values
from ringhaul.quant.slots import SLOTTED_MIN, Indices

GROUPS = 64


def first_rank(slot_count: int) -> int:
    """How many groups may be beyond the window at the first attempt: mostly with slots to spare."""
    return slot_count * 8 // 13


def next_rank(rank: Indices, excess: Indices) -> Indices:
    """The rank to try after one that took so many slots too many: one that mostly has enough."""
    found: Indices = np.maximum(0, np.minimum(rank * 3 // 4, rank - excess))
    return found


def spread(values: Values, scratch: Values) -> tuple[Values, Values]:
    """The lowest and the highest values of the groups of each row, in ascending order.

    Args:
        values: shape (rows, elements).
        scratch: as many elements, or more.

    Returns:
        Two arrays of shape (rows, 64), or (rows, 1) for short rows, of one group each.
    """
    row_count, length = values.shape
    if length < SLOTTED_MIN:
        return values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    # The first 64 values of all rows, then the next 64, ...: reductions that are long and few.
    whole = length // GROUPS
    dealt = scratch[: row_count * whole * GROUPS].reshape(whole, row_count, GROUPS)
    parts = values[:, : whole * GROUPS].reshape(row_count, whole, GROUPS)
    np.copyto(dealt, parts.swapaxes(0, 1))
    found = []
    for choose in (np.minimum, np.maximum):
        extremes = choose.reduce(dealt.reshape(whole, -1), axis=0).reshape(row_count, GROUPS)
        if length % GROUPS:
            choose(extremes, values[:, length - GROUPS :], out=extremes)
        extremes.sort(axis=1)
        found.append(extremes)
    return found[0], found[1]


@dataclass(slots=True)
class Grid:
    """Of each block: lines `step` apart through `anchor`; `shift` makes code 0 of the lowest.

    The code of a value is in the low bits of (value - anchor) * inverse + shift, as a number of
    the dtype. `anchor` is None where all are zero. `origin` is what the header says.
    """

    step: Values
    origin: Values
    inverse: Values
    shift: Values
    anchor: Values | None


class GridPlanner:
    """Chooses grids; constants are arrays, of no dimension if one number: NumPy takes those faster.

    Works on arrays of one value a block, at 1.5 us an operation whatever their length.
    """

    def __init__(self, dtype: np.dtype[Any], share: float, code_max: int) -> None:
        self._math = ARITHMETIC[dtype]
        self._share, self._rounder, self._step_min = (
            np.array(number, dtype) for number in (share, self._math.rounder, self._math.step_min)
        )
        self._zero, self._one, self._reach = (
            np.array(number, dtype) for number in (0.0, 1.0, code_max)
        )
        #: Codes reach one window farther on either side: the step is a share of the window, of
        #: half the range from its other end on, or of a third of the whole, whatever is largest.
        self._parts = np.array([1 / 2, 1, 1 / 3, 1 / 2], dtype).reshape(2, 2, 1)

    def plan(self, lows: Values, highs: Values, rank: int | Indices) -> Grid | None:
        """The grid of each block; None if a value is not finite.

        Args:
            lows: what `spread` gave.
            highs: likewise.
            rank: how many groups may have their extremes outside of the window; of each block,
                or of all.
        """
        row_count, group_count = lows.shape
        rows = slice(None) if isinstance(rank, int) else np.arange(row_count)
        # Ends of range, window, window, range.
        ends = np.empty((4, row_count), lows.dtype)
        ends[0], ends[3] = lows[:, 0], highs[:, -1]
        ends[1] = lows[rows, rank >> 1]
        ends[2] = highs[rows, group_count - 1 - (rank + 1 >> 1)]
        anchor = None
        if not np.maximum.reduce(ends[0]) <= 0.0 <= np.minimum.reduce(ends[3]):
            anchor = self._anchor(ends, rank)
        shares = np.multiply(ends, self._share)  # of which differences do not overflow
        reach = np.subtract(shares[2:, None], shares[:2])
        np.multiply(reach, self._parts, out=reach)
        step = np.maximum.reduce(reach.reshape(4, row_count), axis=0)
        np.maximum(step, self._step_min, out=step)
        step_max = np.maximum.reduce(step)
        if not step_max < np.inf:
            return None
        inverse = np.divide(self._one, step)
        least, bottom = np.rint(np.multiply(ends[:2], inverse))
        np.minimum(bottom, np.add(least, self._reach, out=least), out=bottom)
        np.add(bottom, self._zero, out=bottom)  # no negative zero, of which CPUs differ
        shift = np.subtract(self._rounder, bottom)
        origin = np.multiply(bottom, step)
        if anchor is not None:
            np.add(origin, anchor, out=origin)
        if step_max > self._math.largest / HEADROOM:
            np.clip(origin, -self._math.largest, self._math.largest, out=origin)
        return Grid(step, origin, inverse, shift, anchor)

    def _anchor(self, ends: Values, rank: int | Indices) -> Values:
        """Make `ends` relative to the anchor of each block: its low end, or zero."""
        near = self._math.near_zero
        at_zero = (ends[0] < near) & (ends[3] > -near)
        anchor: Values = np.where(at_zero, self._zero, ends[0])
        np.minimum(ends[0], self._zero, out=ends[0], where=at_zero)
        np.maximum(ends[3], self._zero, out=ends[3], where=at_zero)
        np.subtract(ends, anchor, out=ends)
        np.copyto(ends[1], ends[0], where=rank == 0)
        np.copyto(ends[2], ends[3], where=rank == 0)
        return anchor
