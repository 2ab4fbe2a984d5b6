"""Two codes of 4 bits a byte: element i in the low half of byte i, i + ceil(n / 2) in the high."""

import numpy as np
from numpy.typing import NDArray

from ringhaul.quant.base import BATCH_ELEMENTS, Bytes
from ringhaul.ring.twins import find_twin

#: Codes are shifted eight at a time: NumPy shifts single bytes at 1 GB/s.
_WORD_BYTES = 8
_LOW_HALVES = np.uint64(0x0F0F0F0F0F0F0F0F)
_HALF_BITS = np.uint64(4)


class Nibbles:
    """Codes of a batch, one a byte, in `codes`; holds scratch."""

    def __init__(self) -> None:
        self.codes: Bytes = np.zeros(BATCH_ELEMENTS + _WORD_BYTES, np.uint8)
        self._packed = np.zeros(BATCH_ELEMENTS // 2 + _WORD_BYTES, np.uint8)

    def pack(self, element_count: int, out: Bytes) -> None:
        """Write the first codes to half as many bytes."""
        if (twin := find_twin("pack")) is not None:
            twin(self.codes[:element_count], out)
            return
        half = out.size
        self.codes[element_count] = 0  # the partner of the last, if the count is odd
        words = _words(self._packed, 0, half)
        np.left_shift(_words(self.codes, half, half), _HALF_BITS, out=words)
        np.bitwise_or(words, _words(self.codes, 0, half), out=words)
        np.copyto(out, self._packed[:half])

    def unpack(self, element_count: int, body: Bytes) -> Bytes:
        """The codes in `body`, one a byte, until the next call."""
        if (twin := find_twin("unpack")) is not None:
            twin(body, self.codes[:element_count])
            return self.codes[:element_count]
        half = body.size
        np.copyto(self._packed[:half], body)
        words = _words(self._packed, 0, half)
        np.bitwise_and(words, _LOW_HALVES, out=_words(self.codes, 0, half))
        np.right_shift(words, _HALF_BITS, out=words)
        np.bitwise_and(words, _LOW_HALVES, out=words)
        np.copyto(self.codes[half : 2 * half], self._packed[:half])
        return self.codes[:element_count]


def _words(data: Bytes, start: int, size: int) -> NDArray[np.uint64]:
    """`size` bytes from `start` on, and up to seven more, as 64-bit words."""
    return data[start : start + -(-size // _WORD_BYTES) * _WORD_BYTES].view(np.uint64)
