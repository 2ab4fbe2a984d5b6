"""Private result buffers, kept warm: fresh memory costs a page fault per 4 KiB."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Besides the largest buffer so many bytes are kept.
_SPARE_BYTES_MAX = 32 << 20
#: Smaller ones come from the heap, which keeps its pages.
_POOLED_BYTES_MIN = 128 << 10


class BufferPool:
    """Lends byte buffers; keeps few. What it does takes as long for a thousand as for one."""

    def __init__(self) -> None:
        #: By size; what was used last stands last.
        self._free: dict[int, list[NDArray[np.uint8]]] = {}
        self._free_bytes = 0

    def lend(self, element_count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """An uninitialized array of one dimension."""
        wanted = element_count * dtype.itemsize
        if wanted < _POOLED_BYTES_MIN:
            return np.empty(element_count, dtype)
        size = _rounded(wanted)
        buffers = self._free.pop(size, None)
        if buffers:
            buffer = buffers.pop()
            self._free_bytes -= size
            if buffers:
                self._free[size] = buffers
        else:
            if size > _SPARE_BYTES_MAX:  # sizes have changed: let the old ones go first
                self._free.clear()
                self._free_bytes = 0
            buffer = np.empty(size, np.uint8)
        return buffer[:wanted].view(dtype)

    def give_back(self, array: NDArray[Any]) -> None:
        """The array is no longer used by anybody."""
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        if base.dtype != np.uint8 or base.nbytes < _POOLED_BYTES_MIN:
            return
        buffers = self._free.pop(base.nbytes, [])
        buffers.append(base)
        self._free[base.nbytes] = buffers
        self._free_bytes += base.nbytes
        while self._free_bytes > max(self._free) + _SPARE_BYTES_MAX:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        size = next(iter(self._free))
        self._free[size].pop()
        self._free_bytes -= size
        if not self._free[size]:
            del self._free[size]


def describe_shortage(error: MemoryError) -> str:
    """What a member says of itself when it gives a call up for want of memory."""
    reason = f" ({error})" if str(error) else ""
    return f"out of memory{reason}; nobody got a result; call again with less at a time"


def _rounded(size: int) -> int:
    """Up to the next of eight sizes per power of two; pages beyond `size` are never touched."""
    unit = 1 << max(size.bit_length() - 4, 0)
    return -(-size // unit) * unit
