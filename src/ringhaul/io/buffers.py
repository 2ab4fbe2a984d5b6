"""Private result buffers, kept warm: fresh memory costs a page fault per 4 KiB."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Besides the largest buffer so many bytes are kept.
_SPARE_BYTES_MAX = 32 << 20


class BufferPool:
    """Lends byte buffers; keeps few."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def lend(self, element_count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """An uninitialized array of one dimension."""
        wanted = element_count * dtype.itemsize
        fitting = [b for b in self._free if wanted <= b.size <= 2 * wanted + 4096]
        if fitting:
            buffer = min(fitting, key=lambda b: b.size)
            self._free = [b for b in self._free if b is not buffer]
        else:
            self._free.clear()  # sizes have changed: let the old ones go first
            buffer = np.empty(wanted, np.uint8)
        return buffer[:wanted].view(dtype)

    def give_back(self, array: NDArray[Any]) -> None:
        """The array is no longer used by anybody."""
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        self._free.append(base)
        self._free.sort(key=lambda b: -b.size)
        spare = 0
        kept = self._free[:1]
        for buffer in self._free[1:]:
            spare += buffer.size
            if spare <= _SPARE_BYTES_MAX:
                kept.append(buffer)
        self._free = kept
