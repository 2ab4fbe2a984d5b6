"""The quantizers: 8 or 4 bits a value, and a scale for every block of some hundred values.

Where a block has values of both signs, or zero, its grid has a line at zero, so zeros come back
as zeros (sparse gradients stay sparse). Decides the wire format of "uint8", "uint8-zp", "uint4".

A batch is: the steps of all blocks, then their origins (little-endian floats of the coder's
dtype), then the codes. A code stands for `code * step + origin`, of "uint8-zp" for
`(code + origin) * step`. Two codes of 4 bits share a byte: element i has the low half of byte
i, element i + ceil(n / 2) the high half.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringhaul.errors import WireError
from ringhaul.quant.base import BATCH_ELEMENTS, Bytes, Coder, Values, nonfinite_error
from ringhaul.quant.noise import Noise


@dataclass(frozen=True, slots=True)
class BlockCodec:
    """Codes of `bits` bits on an even grid per block of `block_elements` values.

    Rounds to the nearest, ties to even, or up and down at random with the value as the
    expectation if `noise_seed` is given. The error is at most half a step (a step, if at random).
    A step is 1/255 of the block's range for 8 bits, 1/15 for 4 bits; if at random, 1/254 and
    1/14; with a zero point, 1/254. The range includes zero in blocks that come within 2**-100
    of it, and steps are not below 2**-126, so that no result depends on how a CPU treats
    subnormal numbers. With a zero point values are multiples of the step, which is therefore
    not below 2**-21 of the largest value.

    NaN and infinity are refused. Constant blocks come back exactly (above 2**-100), zeros as
    zeros, where no value is above 2**126.
    """

    name: str
    bits: int
    block_elements: int
    has_zero_point: bool = False
    noise_seed: int | None = None
    is_lossy: bool = True

    @property
    def step_share(self) -> float:
        """The step as a share of a block's range.

        The lines at which both ends are rounded may lie as many steps apart as there are codes
        less one. To the nearest, they do if the range itself is a little less than that;
        at random, or where a value is many steps from zero and its place is known to a
        quarter of a step only, one step has to be spared.
        """
        intervals = float((1 << self.bits) - 1)
        if self.noise_seed is None and not self.has_zero_point:
            return (1.0 + 2.0**-12) / intervals
        return (1.0 + 2.0**-12) / (intervals - 1)

    def make_coder(self, dtype: np.dtype[Any]) -> Coder:
        return _BlockCoder(self, dtype)

    def error_bound(self, low: float, high: float) -> float:
        reach = high - low
        if low < 2.0**-100 and high > -(2.0**-100):
            reach = max(high, 0.0) - min(low, 0.0)
        step = max(reach * self.step_share, 2.0**-126)
        if self.has_zero_point:
            step = max(step, max(abs(low), abs(high)) * 2.0**-21)
        return step / 2 if self.noise_seed is None else step


#: Blocks as long as the accuracy allows, since each costs NumPy some 50 ns a pass (the table in
#: `bench/codecs.py --blocks`): 8 bytes of scales on 1024 values are 0.8 %, on 512 halves 3 %.
UINT8_BLOCK_ELEMENTS = 1024
UINT4_BLOCK_ELEMENTS = 512
UINT8 = BlockCodec("uint8", 8, UINT8_BLOCK_ELEMENTS)
UINT8_ZP = BlockCodec("uint8-zp", 8, UINT8_BLOCK_ELEMENTS, has_zero_point=True)
UINT4 = BlockCodec("uint4", 4, UINT4_BLOCK_ELEMENTS)
UINT8_SR = BlockCodec("uint8-sr", 8, UINT8_BLOCK_ELEMENTS, noise_seed=0)
UINT4_SR = BlockCodec("uint4-sr", 4, UINT4_BLOCK_ELEMENTS, noise_seed=0)


@dataclass(frozen=True, slots=True)
class _Arithmetic:
    """Constants of the dtype that a coder computes in."""

    bits: np.dtype[Any]  # integers of the same width
    #: Added to a number of less than 2**22 (2**51), leaves it rounded in the low bits.
    rounder: float
    step_min: float
    #: Blocks that come so near to zero count as reaching it: all sums of step and origin are
    #: then zero or normal numbers.
    near_zero: float
    #: Smallest step, as a share of the largest value, if values are multiples of it.
    multiple_min: float
    largest: float


_ARITHMETIC = {
    np.dtype(np.float32): _Arithmetic(
        np.dtype(np.int32),
        1.5 * 2.0**23,
        2.0**-126,
        2.0**-100,
        2.0**-21,
        float(np.finfo(np.float32).max),
    ),
    np.dtype(np.float64): _Arithmetic(
        np.dtype(np.int64),
        1.5 * 2.0**52,
        2.0**-1022,
        2.0**-900,
        2.0**-50,
        float(np.finfo(np.float64).max),
    ),
}
#: Codes of 4 bits are shifted eight at a time: NumPy shifts single bytes at 1 GB/s.
_WORD_BYTES = 8
_LOW_HALVES = np.uint64(0x0F0F0F0F0F0F0F0F)
_HALF_BITS = np.uint64(4)
#: Decoding takes a detour by this factor where a result might overflow on the way.
_HEADROOM = 1024.0


class _BlockCoder:
    """Works in rows of one block each; the last, shorter block is a row alone.

    All that is per block is planned for the whole batch at once, in arrays of one value a
    block, with constants as arrays of no dimension: NumPy takes 1.5 us for a small operation, 4
    with a Python number. Calls per element are then four to encode and three to decode.
    """

    def __init__(self, codec: BlockCodec, dtype: np.dtype[Any]) -> None:
        assert codec.bits in (4, 8), codec
        assert codec.block_elements % 16 == 0, codec
        self._codec = codec
        self._dtype = dtype
        self._wire_dtype = dtype.newbyteorder("<")
        self._math = _ARITHMETIC[dtype]
        self._scaled = np.empty(BATCH_ELEMENTS, dtype)
        self._unpacked = np.zeros(BATCH_ELEMENTS + _WORD_BYTES, np.uint8)
        self._packed = np.zeros(BATCH_ELEMENTS // 2 + _WORD_BYTES, np.uint8)
        self._noise = None if codec.noise_seed is None else Noise(codec.noise_seed, dtype)
        self._starts = np.arange(0, BATCH_ELEMENTS, codec.block_elements)
        blocks_max = self._starts.size
        self._header, self._magnitude = (np.empty(2 * blocks_max, dtype) for _ in range(2))
        self._low, self._high, self._inverse, self._shift, self._scratch = (
            np.empty(blocks_max, dtype) for _ in range(5)
        )
        self._share = np.array(codec.step_share, dtype)
        self._rounder = np.array(self._math.rounder, dtype)
        self._step_min = np.array(self._math.step_min, dtype)
        self._one = np.array(1.0, dtype)
        self._round = np.rint if self._noise is None else np.floor

    def encoded_size(self, element_count: int) -> int:
        codes = element_count if self._codec.bits == 8 else -(-element_count // 2)
        return 2 * self._block_count(element_count) * self._dtype.itemsize + codes

    def _block_count(self, element_count: int) -> int:
        return -(-element_count // self._codec.block_elements)

    def _rows(self, element_count: int) -> Iterator[tuple[slice, slice, int]]:
        """Elements, blocks, and number of rows: of the whole blocks, and of the last."""
        whole, rest = divmod(element_count, self._codec.block_elements)
        end = element_count - rest
        if whole:
            yield slice(0, end), slice(0, whole), whole
        if rest:
            yield slice(end, element_count), slice(whole, whole + 1), 1

    # -- Encode -------------------------------------------------------------------------------

    def encode(self, values: Values, out: Bytes, nonce: int) -> None:
        blocks = self._block_count(values.size)
        header = self._header[: 2 * blocks]
        anchor = self._plan(values, header[:blocks], header[blocks:])
        header_bytes = header.nbytes
        np.copyto(out[:header_bytes].view(self._wire_dtype), header)
        if self._noise is not None:
            self._noise.fill(values.size, nonce)
        body = out[header_bytes:]
        codes = body if self._codec.bits == 8 else self._unpacked[: values.size]
        for elements, rows, row_count in self._rows(values.size):
            source = values[elements].reshape(row_count, -1)
            scaled = self._scaled[elements].reshape(row_count, -1)
            if anchor is not None:
                source = np.subtract(source, anchor[rows, None], out=scaled)
            np.multiply(source, self._inverse[rows, None], out=scaled)
            if self._noise is not None:
                np.add(scaled, self._noise.values[elements].reshape(row_count, -1), out=scaled)
            np.add(scaled, self._shift[rows, None], out=scaled)
        rounded = self._scaled[: values.size].view(self._math.bits)
        np.copyto(codes, rounded, casting="unsafe")
        if self._codec.bits == 4:
            self._pack(values.size, body)

    def _plan(self, values: Values, step: Values, origin: Values) -> Values | None:
        """Choose the grid of each block.

        Writes step and origin, and `_inverse` and `_shift`: the code of a value is in the low
        bits of (value - anchor) * inverse + shift. Returns the anchors, None if all are zero.
        """
        blocks = step.size
        low, high = self._low[:blocks], self._high[:blocks]
        np.minimum.reduceat(values, self._starts[:blocks], out=low)
        np.maximum.reduceat(values, self._starts[:blocks], out=high)
        anchor = None
        if self._codec.has_zero_point:
            self._set_multiple(low, high, step)
        else:
            if not np.maximum.reduce(low) <= 0.0 <= np.minimum.reduce(high):
                anchor = self._anchor(low, high)
            self._set_step(low, high, step)
        step_max = np.maximum.reduce(step)
        if not step_max < np.inf:
            raise nonfinite_error(self._codec.name, values)
        self._set_shift(low, step, origin)
        if self._codec.has_zero_point:
            return None
        np.multiply(origin, step, out=origin)
        if anchor is not None:
            np.add(origin, anchor, out=origin)
        if step_max > self._math.largest / _HEADROOM:
            np.clip(origin, -self._math.largest, self._math.largest, out=origin)
        return anchor

    def _anchor(self, low: Values, high: Values) -> Values:
        """Make `low` and `high` relative to the anchor of each block: its low end, or zero."""
        near = self._math.near_zero
        at_zero = (low < near) & (high > -near)
        anchor = np.where(at_zero, self._dtype.type(0), low)
        np.minimum(low, 0.0, out=low, where=at_zero)
        np.maximum(high, 0.0, out=high, where=at_zero)
        np.subtract(low, anchor, out=low)
        np.subtract(high, anchor, out=high)
        return anchor

    def _set_step(self, low: Values, high: Values, step: Values) -> None:
        """The range over the number of codes, but one or two: see `step_share`."""
        part = self._scratch[: step.size]
        np.multiply(low, self._share, out=part)
        np.multiply(high, self._share, out=step)
        np.subtract(step, part, out=step)  # of the shares, since high - low may overflow
        np.maximum(step, self._step_min, out=step)

    def _set_multiple(self, low: Values, high: Values, step: Values) -> None:
        """As `_set_step`, and coarse enough for every value to be a multiple of the step."""
        self._set_step(low, high, step)
        largest = np.maximum(high, np.negative(low))
        np.maximum(step, largest * self._dtype.type(self._math.multiple_min), out=step)

    def _set_shift(self, low: Values, step: Values, bottom: Values) -> None:
        """Write the index of the lowest line to `bottom`, and what makes it code 0."""
        inverse, shift = self._inverse[: step.size], self._shift[: step.size]
        np.divide(self._one, step, out=inverse)
        np.multiply(low, inverse, out=bottom)
        self._round(bottom, out=bottom)
        np.subtract(self._rounder, bottom, out=shift)

    def _pack(self, element_count: int, out: Bytes) -> None:
        half = out.size
        self._unpacked[element_count] = 0  # the partner of the last, if the count is odd
        words = _words(self._packed, 0, half)
        np.left_shift(_words(self._unpacked, half, half), _HALF_BITS, out=words)
        np.bitwise_or(words, _words(self._unpacked, 0, half), out=words)
        np.copyto(out, self._packed[:half])

    # -- Decode -------------------------------------------------------------------------------

    def decode(self, data: Bytes, out: Values) -> None:
        blocks = self._block_count(out.size)
        header = self._header[: 2 * blocks]
        header_bytes = header.nbytes
        np.copyto(header, data[:header_bytes].view(self._wire_dtype))
        is_huge = self._check_header(header)
        body = data[header_bytes:]
        np.copyto(out, body if self._codec.bits == 8 else self._unpack(out.size, body))
        if is_huge:
            scaled = header[:blocks] if self._codec.has_zero_point else header
            np.multiply(scaled, 1.0 / _HEADROOM, out=scaled)
        step, origin = header[:blocks], header[blocks:]
        for elements, rows, row_count in self._rows(out.size):
            values = out[elements].reshape(row_count, -1)
            # Two roundings, never one: no fused operation may do both.
            if self._codec.has_zero_point:
                np.add(values, origin[rows, None], out=values)
                np.multiply(values, step[rows, None], out=values)
            else:
                np.multiply(values, step[rows, None], out=values)
                np.add(values, origin[rows, None], out=values)
        if is_huge:
            bound = self._math.largest / _HEADROOM
            np.clip(out, -bound, bound, out=out)
            np.multiply(out, _HEADROOM, out=out)

    def _check_header(self, header: Values) -> bool:
        """Whether a value might overflow on the way to a result.

        Raises:
            WireError: the header is none that `encode` writes, and might end in no number.
        """
        magnitudes = np.absolute(header, out=self._magnitude[: header.size])
        largest = np.maximum.reduce(magnitudes)
        if not largest < np.inf:
            raise WireError(f'scales of codec "{self._codec.name}" that are not finite')
        if not self._codec.has_zero_point:
            return bool(largest > self._math.largest / _HEADROOM)
        origin_max = np.maximum.reduce(magnitudes[header.size // 2 :])
        if origin_max > self._math.rounder:
            raise WireError(f'zero points of codec "{self._codec.name}" that are out of range')
        return bool(largest > self._math.largest / self._math.rounder / 2)

    def _unpack(self, element_count: int, body: Bytes) -> Bytes:
        half = body.size
        np.copyto(self._packed[:half], body)
        words = _words(self._packed, 0, half)
        np.bitwise_and(words, _LOW_HALVES, out=_words(self._unpacked, 0, half))
        np.right_shift(words, _HALF_BITS, out=words)
        np.bitwise_and(words, _LOW_HALVES, out=words)
        np.copyto(self._unpacked[half : 2 * half], self._packed[:half])
        return self._unpacked[:element_count]


def _words(data: Bytes, start: int, size: int) -> NDArray[np.uint64]:
    """`size` bytes from `start` on, and up to seven more, as 64-bit words."""
    return data[start : start + -(-size // _WORD_BYTES) * _WORD_BYTES].view(np.uint64)
