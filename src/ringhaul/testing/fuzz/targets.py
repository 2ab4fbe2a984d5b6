"""Parsers under fire: what each is fed, and what must never come out of it.

A target raises nothing, whatever its input; what it raises is a bug.
"""

import random
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ringhaul.errors import WireError
from ringhaul.ids import ReduceOp
from ringhaul.limits import FRAME_BYTES_MAX
from ringhaul.quant import SegmentCoder, UnfitValueError, find_codec
from ringhaul.ring.plan import Phase
from ringhaul.testing.fuzz.makers import Maker
from ringhaul.testing.fuzz.mutants import mutated_bytes, mutated_message
from ringhaul.wire.codec import Envelope, decode, encode
from ringhaul.wire.framing import LENGTH_BYTES, FrameReader, frame
from ringhaul.wire.message import MESSAGES
from ringhaul.wire.segment_header import (
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    SegmentHeader,
    SegmentKind,
    unpack_header,
)

_READ_BYTES = 64 * 1024
_UINT64 = 2**64 - 1


class Target(Protocol):
    """One parser."""

    name: str

    def originals(self, dice: random.Random) -> Sequence[bytes]:
        """Valid input, to be mutated."""

    def mutate(self, data: bytes, dice: random.Random) -> bytes:
        """Something near to it."""

    def feed(self, data: bytes) -> bool:
        """Parse it; True if it was taken for valid. Raises only if there is a bug."""


class Messages:
    """Bytes -> message: `decode`."""

    name = "message"

    def originals(self, dice: random.Random) -> Sequence[bytes]:
        """All kinds, with values at their bounds."""
        maker = Maker(dice)
        return [encode(maker.envelope(kind)) for kind in MESSAGES.values() for _ in range(4)]

    def mutate(self, data: bytes, dice: random.Random) -> bytes:
        """Of the bytes, or of the values."""
        return mutated_message(data, dice)

    def feed(self, data: bytes) -> bool:
        """A message comes back as it went, if it is one."""
        try:
            envelope = decode(data)
        except WireError:
            return False
        assert isinstance(envelope, Envelope)
        # a duration may come as an integer and leaves as a float: bytes differ, values do not
        assert decode(encode(envelope)) == envelope
        return True


class Frames:
    """Byte stream -> frames -> messages, in pieces of any size."""

    name = "frames"

    def originals(self, dice: random.Random) -> Sequence[bytes]:
        """Some messages in a row."""
        maker = Maker(dice)
        kinds = list(MESSAGES.values())
        return [
            b"".join(
                frame(encode(maker.envelope(dice.choice(kinds)))) for _ in range(dice.randint(1, 4))
            )
            for _ in range(50)
        ]

    def mutate(self, data: bytes, dice: random.Random) -> bytes:
        """Of the bytes: lengths are among them."""
        return mutated_bytes(data, dice)

    def feed(self, data: bytes) -> bool:
        """Cut it up twice, in two ways: the frames are the same."""
        taken = [self._cut(data, size) for size in (_READ_BYTES, 7)]
        assert taken[0] is None or taken[1] is None or taken[0] == taken[1]
        return bool(taken[0])

    def _cut(self, data: bytes, size: int) -> list[bytes] | None:
        reader = FrameReader()
        frames: list[bytes] = []
        try:
            for start in range(0, len(data), size):
                frames += reader.feed(data[start : start + size])
                assert reader.pending_bytes < FRAME_BYTES_MAX + LENGTH_BYTES
            for payload in frames:
                decode(payload)
        except WireError:
            return None
        return frames


class Headers:
    """The fixed header before a segment."""

    name = "header"

    def originals(self, dice: random.Random) -> Sequence[bytes]:
        """Of all kinds, with numbers small and large."""
        return [self._make(dice) for _ in range(100)]

    def _make(self, dice: random.Random) -> bytes:
        kind = dice.choice(list(SegmentKind))
        size = 0 if kind in (SegmentKind.GRANT, SegmentKind.ACK) else dice.choice([1, 4096, 2**20])

        def number(bits: int) -> int:
            numbers: list[int] = [0, 1, 2**bits - 1, dice.getrandbits(bits)]
            return dice.choice(numbers)

        fields = (number(64), number(64), number(32), number(32), number(32), number(32), size)
        return SegmentHeader(kind, *fields).pack()

    def mutate(self, data: bytes, dice: random.Random) -> bytes:
        """Of the bytes."""
        return mutated_bytes(data, dice)

    def feed(self, data: bytes) -> bool:
        """What is a header is one in one way only."""
        try:
            header = unpack_header(data)
        except WireError:
            return False
        assert len(data) == HEADER_BYTES
        assert header.pack() == data
        assert header.payload_bytes <= PAYLOAD_BYTES_MAX
        assert 0 <= header.generation <= _UINT64
        return True


class EncodedSegments:
    """An encoded segment -> values: each codec's decoder, at each hop."""

    _COUNT = 700

    def __init__(self, codec: str) -> None:
        self.name = f"codec {codec}"
        self._codec = codec
        self._own = np.linspace(-1, 1, self._COUNT, dtype=np.float32)
        self._coder = SegmentCoder(find_codec(codec), ReduceOp.SUM, self._own.dtype, 3)
        size = max(self._coder.encoded_size(phase, self._COUNT) for phase in Phase)
        self._out = np.empty(size, np.uint8).data
        self._result = np.empty_like(self._own)

    def originals(self, dice: random.Random) -> Sequence[bytes]:
        """Segments with and without a pattern."""
        made = []
        for scale in (0.0, 1.0, 1e-30, 1e30):
            noise = np.array([dice.uniform(-1, 1) for _ in range(self._COUNT)], np.float32)
            for values in (noise, np.sort(noise)):
                scaled = (values * np.float32(scale)).astype(np.float32)
                try:
                    size = self._coder.encode_own(scaled, self._out)
                except UnfitValueError:
                    continue
                made.append(bytes(self._out[:size]))
        return made

    def mutate(self, data: bytes, dice: random.Random) -> bytes:
        """Of the bytes: flags and scales are among them."""
        return mutated_bytes(data, dice)

    def feed(self, data: bytes) -> bool:
        """As a partial result that is passed on or finished, and as a final one."""
        taken = 0
        coder = self._coder
        for hop in (
            lambda: coder.decode(data, self._result),
            lambda: coder.pass_on(data, self._own, self._out),
            lambda: coder.finish(data, self._own, self._out, self._result),
        ):
            try:
                hop()
                taken += 1
            except (WireError, UnfitValueError):
                continue
        return taken > 0
