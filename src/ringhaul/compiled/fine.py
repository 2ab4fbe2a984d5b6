"""The finer quantizers, compiled: what `quant/fine.py` computes, a block at a time in the cache.

Same format, same bits, same refusals: a batch that needs more than the plain way (values that are
not finite, or so large that a result might overflow; slots that nobody writes) is left to the
other.
"""

import numpy as np
from numpy.typing import NDArray

from ringhaul.compiled.primitives import as_float, compiled
from ringhaul.compiled.rows import ROW
from ringhaul.compiled.windows import (
    Words,
    choose_grid,
    first_rank,
    mark,
    quantize,
    rank_place,
    slot_count,
    spread,
)
from ringhaul.quant.base import Bytes, Values
from ringhaul.quant.slots import RUN


@compiled
def encode_block(
    values: Values,
    codes: Bytes,
    slot_limit: int,
    code_max: int,
    constants: Values,
    lows: Values,
    highs: Values,
    anchor: float,
    ends: Values,
    outside: Words,
) -> tuple[float, float]:
    """Write codes, with wider windows until there are enough slots; leave its ends in `ends`.

    Step, and index of the lowest line; a step of 0 if a value is not finite.
    """
    rounder, zero, one = constants[1], constants[5], constants[6]
    rank = first_rank(slot_limit)
    while True:
        ends[1], ends[2] = ends[0], ends[3]
        if rank:
            ends[1] = lows[rank_place(rank // 2)] - anchor
            ends[2] = highs[rank_place(ROW - 1 - (rank + 1) // 2)] - anchor
        step, bottom = choose_grid(ends, constants)
        inverse, shift = one / step, rounder - bottom
        excess = quantize(values, anchor, inverse, shift, code_max, codes, outside) - slot_limit
        if excess <= 0:
            return step, bottom
        if rank == 0:
            return zero, zero
        rank = max(0, min(rank * 3 // 4, rank - excess))


@compiled
def encode_fine(
    values: Values,
    header: Values,
    counts: Bytes,
    slots: Bytes,
    codes: Bytes,
    block: int,
    block_slots: int,
    code_max: int,
    constants: Values,
) -> bool:
    """Write steps and origins to `header`, counts and slots, and one byte a value to `codes`.

    `constants`: share, rounder, least step, near zero, largest, 0, 1, 1/2, 1/3, largest code.
    False: a value is not finite.
    """
    near, largest, zero, half = constants[3], constants[4], constants[5], constants[7]
    lows, highs = np.empty(ROW, values.dtype), np.empty(ROW, values.dtype)
    words = np.empty((block + ROW - 1) // ROW, np.uint64)
    ends = np.empty(4, values.dtype)
    block_count, taken = header.size // 2, 0
    for index in range(block_count):
        start, stop = index * block, min(index * block + block, values.size)
        part = values[start:stop]
        spread(part, lows, highs)
        low, high = lows[rank_place(0)], highs[rank_place(ROW - 1)]
        if not (low >= -largest and high <= largest):
            return False
        anchor = zero
        if low < near and high > -near:
            ends[0], ends[3] = min(low, zero), max(high, zero)
        else:
            anchor = low
            ends[0], ends[3] = zero, high - anchor
        limit = slot_count(part.size, block, block_slots)
        outside = words[: (part.size + ROW - 1) // ROW]
        step, bottom = encode_block(
            part, codes[start:stop], limit, code_max, constants, lows, highs, anchor, ends, outside
        )
        if step == zero:
            return False
        middle = ends[1] * half + ends[2] * half + anchor
        runs = counts[start // RUN : (stop + RUN - 1) // RUN]
        used = mark(part, middle, largest, outside, runs, slots[taken:])
        if used < 0:
            return False
        taken += used
        header[index] = step
        header[block_count + index] = max(min(bottom * step + anchor, largest), -largest)
    slots[taken:] = 0
    return True


@compiled
def correct(
    codes: Bytes,
    counts: Bytes,
    slots: Bytes,
    step: float,
    origin: float,
    code_max: int,
    places: NDArray[np.int64],
    out: Values,
) -> int:
    """Write places and values of what the slots of a block tell of; how many there are.

    -1: these are counts and slots that `encode_fine` never writes.
    """
    taken, window = np.int64(0), code_max + 1
    for run in range(counts.size):
        start, count = run * RUN, np.int64(counts[run])
        if taken + count > slots.size:
            return -1
        last = np.int64(start - 1)
        for i in range(taken, taken + count):
            slot = np.int64(slots[i])
            place = start + slot % RUN
            if place <= last or place >= codes.size:
                return -1
            last = place
            places[i] = place
            index = np.int64(codes[place]) + window - 2 * window * (slot // RUN)
            out[i] = as_float(index, step) * step + origin
        taken += count
    return int(taken)


@compiled
def _decode(
    codes: Bytes,
    counts: Bytes,
    slots: Bytes,
    header: Values,
    block: int,
    code_max: int,
    own: Values,
    adds: bool,
    out: Values,
) -> bool:
    """Write the values of one byte each, plus own values if it `adds`."""
    places, corrections = np.empty(block, np.int64), np.empty(block, out.dtype)
    block_count, taken = header.size // 2, 0
    for index in range(block_count):
        start, stop = index * block, min(index * block + block, out.size)
        part, part_codes = out[start:stop], codes[start:stop]
        step, origin = header[index], header[block_count + index]
        runs = counts[start // RUN : (stop + RUN - 1) // RUN]
        found = correct(
            part_codes, runs, slots[taken:], step, origin, code_max, places, corrections
        )
        if found < 0:
            return False
        if adds:
            part_own = own[start:stop]
            for i in range(found):
                corrections[i] += part_own[places[i]]
            for i in range(part.size):
                part[i] = as_float(part_codes[i], step) * step + origin + part_own[i]
        else:
            for i in range(part.size):
                part[i] = as_float(part_codes[i], step) * step + origin
        for i in range(found):
            part[places[i]] = corrections[i]
        taken += found
    return True


@compiled
def decode_fine(
    codes: Bytes,
    counts: Bytes,
    slots: Bytes,
    header: Values,
    block: int,
    code_max: int,
    out: Values,
) -> bool:
    """Write the values of one byte each; False: `encode_fine` writes no such slots."""
    return _decode(codes, counts, slots, header, block, code_max, header, False, out)


@compiled
def decode_add_fine(
    codes: Bytes,
    counts: Bytes,
    slots: Bytes,
    header: Values,
    block: int,
    code_max: int,
    own: Values,
    out: Values,
) -> bool:
    """As `decode_fine`, plus own values."""
    return _decode(codes, counts, slots, header, block, code_max, own, True, out)
