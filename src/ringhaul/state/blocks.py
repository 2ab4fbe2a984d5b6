"""Blocks: how the bytes of a state are cut, for hashing and for transfer.

A block is part of one entry. Blocks are numbered through all entries, in the order of their
names; only the last one of an entry may be short. Offsets are Python integers: entries may be
larger than 4 GiB.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from ringhaul.limits import STATE_BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Entry:
    """One named array, as far as cutting and comparing it goes."""

    name: str
    #: Dtype, byte order and shape, in a form that no other dtype and shape have.
    description: bytes
    byte_count: int
    #: Of one element, if bytes of equal place in it are alike; else 1.
    word_bytes: int = 1


class Span(NamedTuple):
    """Where a block lies."""

    entry_index: int
    start: int
    stop: int


class BlockLayout:
    """The entries of a state and the blocks they are cut into."""

    def __init__(self, entries: Sequence[Entry], block_bytes: int = STATE_BLOCK_BYTES) -> None:
        assert block_bytes > 0
        self.entries = tuple(entries)
        self.block_bytes = block_bytes
        counts = (-(-entry.byte_count // block_bytes) for entry in self.entries)
        #: Number of the first block of each entry; then the number of all blocks.
        self._firsts = list(accumulate(counts, initial=0))
        self.total_bytes = sum(entry.byte_count for entry in self.entries)

    @property
    def block_count(self) -> int:
        """Of all entries."""
        return self._firsts[-1]

    def blocks_of(self, entry_index: int) -> range:
        """The numbers of an entry's blocks."""
        return range(self._firsts[entry_index], self._firsts[entry_index + 1])

    def span(self, index: int) -> Span:
        """Entry and bytes of a block."""
        assert 0 <= index < self.block_count
        entry_index = bisect_right(self._firsts, index) - 1
        start = (index - self._firsts[entry_index]) * self.block_bytes
        stop = min(start + self.block_bytes, self.entries[entry_index].byte_count)
        return Span(entry_index, start, stop)

    def size(self, index: int) -> int:
        """Bytes of a block."""
        _, start, stop = self.span(index)
        return stop - start

    def word_bytes(self, index: int) -> int:
        """Of the elements of a block."""
        return self.entries[self.span(index).entry_index].word_bytes
