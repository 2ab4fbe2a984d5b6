"""Windows and slots, compiled: `quant/windows.py` and `quant/slots.py`, for one block at a time."""

import numpy as np
from numpy.typing import NDArray

from ringhaul.compiled.primitives import compiled, greater, lesser, low_byte, ordered, unordered
from ringhaul.compiled.rows import (
    FOLDED_ROWS,
    ROW,
    bit_count,
    encode_row,
    fold_row,
    fold_rows,
    sign,
    sort_row,
    steps,
    trailing_zeros,
)
from ringhaul.quant import slots as plain_slots
from ringhaul.quant import windows as plain_windows
from ringhaul.quant.base import Bytes, Values
from ringhaul.quant.slots import BELOW, RUN, SLOTTED_MIN

Words = NDArray[np.uint64]
_ONE = np.uint64(1)
_RUN_ROWS = RUN // ROW

slot_count = compiled(plain_slots.slot_count)
first_rank = compiled(plain_windows.first_rank)


@compiled
def rank_place(rank: int) -> int:
    """Where `sort_row` puts the value of a rank."""
    return rank % 8 * 8 + rank // 8


@compiled
def spread(values: Values, lows: Values, highs: Values) -> None:
    """Write the extremes of 64 groups, of every 64th value each, sorted by `sort_row`."""
    if values.size < SLOTTED_MIN:
        low, high = ordered(values[0]), ordered(values[0])
        for i in range(values.size):
            order = ordered(values[i])
            low, high = lesser(low, order), greater(high, order)
        lows[0], highs[-1] = unordered(low), unordered(high)
        return
    for i in range(ROW):
        lows[i] = values[i]
        highs[i] = values[i]
    row_count = values.size // ROW
    row = 1
    while row + FOLDED_ROWS <= row_count:
        fold_rows(values, row * ROW, lows, highs)
        row += FOLDED_ROWS
    while row < row_count:
        fold_row(values, row * ROW, lows, highs)
        row += 1
    fold_row(values, values.size - ROW, lows, highs)
    sort_row(lows)
    sort_row(highs)


@compiled
def quantize(
    values: Values,
    anchor: float,
    inverse: float,
    shift: float,
    code_max: int,
    codes: Bytes,
    outside: Words,
) -> int:
    """Write a code of each value, and a bit of each that is outside of the window; count those."""
    count = 0
    row_count = values.size // ROW
    for row in range(row_count):
        word = encode_row(values, row * ROW, anchor, inverse, shift, code_max, codes, row * ROW)
        outside[row] = word
        count += bit_count(word)
    if row_count < outside.size:
        start = row_count * ROW
        word = np.uint64(0)
        for i in range(values.size - start):
            number = (values[start + i] - anchor) * inverse + shift
            codes[start + i] = low_byte(number) & code_max
            if not 0 <= steps(number) <= code_max:
                word |= _ONE << np.uint64(i)
        outside[row_count] = word
        count += bit_count(word)
    return count


@compiled
def mark(
    values: Values, middle: float, largest: float, outside: Words, counts: Bytes, slots: Bytes
) -> int:
    """Write counts and slots of the values outside, on either side of `middle`; how many.

    -1: a value is not finite.
    """
    used = 0
    for run in range(counts.size):
        before = used
        for row in range(run * _RUN_ROWS, min(run * _RUN_ROWS + _RUN_ROWS, outside.size)):
            word = outside[row]
            while word:
                place = row * ROW + trailing_zeros(word)
                word &= word - _ONE
                if not abs(values[place]) <= largest:
                    return -1
                slots[used] = place % RUN + BELOW * sign(values[place] - middle)
                used += 1
        counts[run] = used - before
    return used


@compiled
def choose_grid(ends: Values, constants: Values) -> tuple[float, float]:
    """Step, and index of the lowest line; ends of range, window, window, range, in this order."""
    share, half, third = constants[0], constants[7], constants[8]
    bottom_part, low_part = ends[0] * share, ends[1] * share
    high_part, top_part = ends[2] * share, ends[3] * share
    step = max(high_part - low_part, constants[2])
    step = max(step, max(top_part - low_part, high_part - bottom_part) * half)
    step = max(step, (top_part - bottom_part) * third)
    inverse = constants[6] / step
    bottom, least = np.rint(ends[1] * inverse), np.rint(ends[0] * inverse)
    return step, min(bottom, least + constants[9]) + constants[5]  # no negative zero
