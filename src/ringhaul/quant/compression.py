"""`+zstd`: compresses an encoded segment where that is faster than sending it as it is.

A compressed segment is shorter than the plain one, whose size both ends know; so nothing says which
it is, and what is not compressed travels as it would without "+zstd". Decides per segment; reads no
clock but the one it is given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from ringhaul.errors import WireError
from ringhaul.quant.base import Bytes, Codec, Coder
from ringhaul.quant.plain import CastCodec, RawCodec

_LEVEL = 1
#: Without a link rate a segment is compressed if that saves at least this share of it.
_SAVED_SHARE_MIN = 0.05
#: What compressing costs both ends, as a multiple of what it costs the sender.
_COST_OF_BOTH_ENDS = 1.5
#: After each attempt that did not pay, twice as many segments go without one, up to this.
_SKIPPED_MAX = 64
#: Unless the last segment was worth it, so much of a segment tells whether the rest may be: an
#: attempt costs 0.3 ms instead of 5 (1 MiB of float32), one segment in 64 on a fast link.
_SAMPLE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ZstdCodec:
    """Another codec, whose segments are compressed where it pays. Its sizes are the largest."""

    inner: Codec

    @property
    def name(self) -> str:
        return f"{self.inner.name}+zstd"

    @property
    def is_lossy(self) -> bool:
        return self.inner.is_lossy

    def make_coder(self, dtype: np.dtype[Any]) -> Coder:
        return self.inner.make_coder(dtype)

    def error_bound(self, low: float, high: float) -> float:
        return self.inner.error_bound(low, high)

    def word_bytes(self, dtype: np.dtype[Any]) -> int:
        """Bytes of what the inner codec writes per value, to be sorted by significance."""
        if isinstance(self.inner, RawCodec):
            return dtype.itemsize
        return 2 if isinstance(self.inner, CastCodec) else 1


class Compressor:
    """Packs and unpacks segments, for one thread.

    Args:
        clock: seconds, monotonic; None: attempts are judged by their size alone.

    Attributes:
        link_bytes_per_s: what the link to the next rank carries; set it as often as it is
            measured. None: not known, judged by size alone.
        plain_bytes, packed_bytes: of all segments packed so far, before and after.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self.link_bytes_per_s: float | None = None
        self.plain_bytes = 0
        self.packed_bytes = 0
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._decompressor = zstandard.ZstdDecompressor()
        self._skipped = 0
        self._to_skip = 0

    def pack(self, out: Bytes, size: int, word_bytes: int) -> int:
        """Replace the first `size` bytes of `out` by their packed form; return its size.

        `word_bytes` divides `size`: bytes of equal place in a word are put side by side. What is
        not worth it stays as it is.
        """
        body = self.shorter(out[:size], word_bytes)
        if body is None:
            return size
        out[: len(body)] = np.frombuffer(body, np.uint8)
        return len(body)

    def shorter(self, plain: Bytes, word_bytes: int) -> bytes | None:
        """The compressed form, if sending that is faster, and not tried in vain of late."""
        body = None
        if self._to_skip > 0:
            self._to_skip -= 1
        else:
            body = self._attempt(plain, word_bytes)
            self._skipped = 0 if body is not None else min(2 * self._skipped + 1, _SKIPPED_MAX)
            self._to_skip = self._skipped
        self.plain_bytes += plain.size
        self.packed_bytes += plain.size if body is None else len(body)
        return body

    def _attempt(self, plain: Bytes, word_bytes: int) -> bytes | None:
        if self._skipped > 0 and plain.size >= 4 * _SAMPLE_BYTES:
            middle = plain.size // 2 // word_bytes * word_bytes
            length = _SAMPLE_BYTES // word_bytes * word_bytes
            if self._compress(plain[middle : middle + length], word_bytes) is None:
                return None
        return self._compress(plain, word_bytes)

    def _compress(self, plain: Bytes, word_bytes: int) -> bytes | None:
        """The compressed bytes, if sending them is faster than sending `plain`."""
        started_at = self._clock() if self._clock else 0.0
        words = plain.reshape(-1, word_bytes)
        body = self._compressor.compress(np.ascontiguousarray(words.T).data)
        saved_bytes = plain.size - len(body)
        if self._clock is None or self.link_bytes_per_s is None:
            return body if saved_bytes >= _SAVED_SHARE_MIN * plain.size else None
        cost_s = (self._clock() - started_at) * _COST_OF_BOTH_ENDS
        return body if saved_bytes / self.link_bytes_per_s > cost_s else None

    def unpack(self, body: Bytes, size: int, word_bytes: int) -> Bytes:
        """The `size` bytes that were packed; allocates no more than that, whatever `body` says.

        Raises:
            WireError: `body` is no packed segment of that size.
        """
        if body.size == size:
            return body
        if body.size > size:
            raise WireError(f"a segment of {body.size} bytes instead of {size}")
        try:
            # The size that the frame names is what would be allocated: compare it first.
            named = zstandard.get_frame_parameters(body.data).content_size
            if named != size:
                raise WireError(f"a compressed segment of {named} bytes instead of {size}")
            plain = self._decompressor.decompress(
                body.data, max_output_size=size, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise WireError(f"a segment that zstandard refuses: {error}") from None
        if len(plain) != size:
            raise WireError(f"a compressed segment of {len(plain)} bytes instead of {size}")
        words = np.frombuffer(plain, np.uint8).reshape(word_bytes, -1)
        return np.ascontiguousarray(words.T).reshape(-1)
