"""Where the few values lie that are beyond the codes of their block: a byte each, and their number.

The codes of a block cover a window of its range. A value just outside keeps the low bits of its
code, and a slot says where it is and on which side. Decides the format of slots, not the window.

A batch is cut into runs of 128 values. A byte for each run says how many of its values are outside.
Then come the slots of all those in their order, each a place in its run in the low seven bits, and
the side in the highest: 1 is below. There are as many slots as blocks may use together; the last
ones, that no run counts, mean nothing.
"""

import numpy as np
from numpy.typing import NDArray

from ringhaul.errors import WireError
from ringhaul.quant.base import Bytes

#: Values of a run; blocks are whole runs but for the last.
RUN = 128
_RUN_BITS = 7
#: Blocks shorter than this have no slots: their extremes are not far apart anyway.
SLOTTED_MIN = 256
BELOW = 128

Indices = NDArray[np.int64]
Halves = NDArray[np.uint16]
#: Of `Halves`: native on most machines.
HALF = np.dtype("<u2")


def run_count(element_count: int) -> int:
    """Runs of so many values."""
    return -(-element_count // RUN)


def slot_count(element_count: int, block_elements: int, block_slots: int) -> int:
    """Slots of a block of `element_count` values, at most `block_elements`: in proportion."""
    if element_count < SLOTTED_MIN:
        return 0
    return element_count * block_slots // block_elements


def write_slots(
    codes: Halves,
    code_max: int,
    scratch: Bytes,
    limit: int,
    counts: Bytes,
    slots: Bytes,
) -> tuple[Indices, int | None]:
    """Write the slots of the values outside of their windows, if no row has more than it may.

    Args:
        codes: shape (rows, elements), contiguous, little-endian; modulo 2**16, so those below
            the window are from 2**15 on.
        code_max: those outside are above it.
        scratch: as many as codes.
        limit: slots that a row may take; of more than one row as many as all of them may.
        counts: of each run.
        slots: at least as many as all rows may take; as many are written as values are outside.

    Returns:
        How many values are outside in each row, and how many slots were written; None if a row
        had too many.
    """
    flat = codes.reshape(-1)
    places = np.greater(flat, code_max, out=scratch.view(np.bool_)).nonzero()[0]
    of_run = np.bincount(places >> _RUN_BITS, minlength=counts.size)
    of_row: Indices = np.add.reduce(of_run.reshape(codes.shape[0], -1), axis=1)
    if np.maximum.reduce(of_row) > limit:
        return of_row, None
    np.copyto(counts, of_run, casting="unsafe")
    found = places.astype(np.uint8)
    np.bitwise_and(found, RUN - 1, out=found)
    is_below = flat.view(np.uint8)[1::2][places]
    np.bitwise_and(is_below, BELOW, out=is_below)
    np.bitwise_or(found, is_below, out=slots[: places.size])
    return of_row, places.size


def read_slots(counts: Bytes, slots: Bytes, element_count: int) -> tuple[Indices, Bytes]:
    """The places of all values outside, ascending, and the slots of each.

    Raises:
        WireError: these are none that `write_slots` writes.
    """
    total = int(np.add.reduce(counts, dtype=np.int64))
    if total > slots.size:
        raise WireError(f"{total} values in {slots.size} slots")
    used = slots[:total]
    places: Indices = np.repeat(np.arange(0, counts.size * RUN, RUN), counts)
    np.add(places, np.bitwise_and(used, RUN - 1), out=places)
    if total and not (places[-1] < element_count and (places[1:] > places[:-1]).all()):
        raise WireError("slots that are not in the order of their places")
    return places, used
