"""Where the parts of an encoded batch lie; its whole blocks, and the last."""

import functools
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ringhaul.quant.slots import RUN, run_count, slot_count


@dataclass(frozen=True, slots=True)
class Rows:
    """Whole blocks of a batch, or its last, shorter one: which elements, blocks and runs.

    Attributes:
        count: of the blocks.
        slot_limit: slots that each may take.
    """

    elements: slice
    blocks: slice
    runs: slice
    count: int
    slot_limit: int

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """A row for each block."""
        return values[self.elements].reshape(self.count, -1)


@dataclass(frozen=True, slots=True)
class Layout:
    """How many bytes a batch has, and where everything is."""

    block_count: int
    size: int
    rows: tuple[Rows, ...]
    header: slice
    counts: slice
    slots: slice
    codes: slice


@functools.lru_cache(maxsize=64)
def lay_out(
    element_count: int, *, bits: int, block_elements: int, block_slots: int, itemsize: int
) -> Layout:
    """Of codes of `bits` bits and steps of `itemsize` bytes. Kept, as most batches are alike."""
    whole, rest = divmod(element_count, block_elements)
    end, runs = whole * block_elements, run_count(element_count)
    rows = []
    if whole:
        rows.append(Rows(slice(0, end), slice(0, whole), slice(0, end // RUN), whole, block_slots))
    if rest:
        limit = slot_count(rest, block_elements, block_slots)
        blocks = slice(whole, whole + 1)
        rows.append(Rows(slice(end, element_count), blocks, slice(end // RUN, runs), 1, limit))
    block_count = whole + (rest > 0)
    counts_at = 2 * block_count * itemsize
    slots_at = counts_at + runs
    codes_at = slots_at + sum(each.count * each.slot_limit for each in rows)
    size = codes_at + (element_count if bits == 8 else -(-element_count // 2))
    return Layout(
        block_count,
        size,
        tuple(rows),
        slice(0, counts_at),
        slice(counts_at, slots_at),
        slice(slots_at, codes_at),
        slice(codes_at, size),
    )
