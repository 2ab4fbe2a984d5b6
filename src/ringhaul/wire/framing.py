"""Byte stream <-> frames: a length of four bytes, big-endian, then so many bytes."""

import struct

from ringhaul.errors import WireError
from ringhaul.limits import FRAME_BYTES_MAX

_LENGTH = struct.Struct("!I")
LENGTH_BYTES = _LENGTH.size


def frame(payload: bytes) -> bytes:
    """Put the length before the payload."""
    assert 0 < len(payload) <= FRAME_BYTES_MAX
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a stream into frames. Holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lost: str | None = None

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Take what arrived; return the frames that are complete now.

        Raises:
            WireError: a length is over `FRAME_BYTES_MAX` or zero. The stream is lost: frames
                before the bad length are lost with it, and nothing more can be fed.
        """
        if self._lost is not None:
            raise WireError(self._lost)
        self._buffer += data
        frames = []
        start = 0
        while len(self._buffer) - start >= LENGTH_BYTES:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if not 0 < length <= FRAME_BYTES_MAX:
                self._buffer.clear()
                self._lost = f"a frame of {length} bytes; 1 to {FRAME_BYTES_MAX} are read"
                raise WireError(self._lost)
            end = start + LENGTH_BYTES + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[start + LENGTH_BYTES : end]))
            start = end
        del self._buffer[:start]
        return frames
