"""The quantizers: 8 or 4 bits a value, and a scale for every block of some hundred values.

Where a block has values of both signs, or zero, its grid has a line at zero, so zeros come back
as zeros (sparse gradients stay sparse). Decides the wire format of "uint8", "uint8-zp", "uint4".

A batch is: the steps of all blocks, then their origins (little-endian floats of the coder's
dtype), then the codes. A code stands for `code * step + origin`, of "uint8-zp" for
`(code + origin) * step`. Two codes of 4 bits share a byte (see `nibbles.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringhaul.errors import WireError
from ringhaul.quant.arithmetic import ARITHMETIC, HEADROOM, largest_magnitude
from ringhaul.quant.base import BATCH_ELEMENTS, Bytes, Coder, Values, nonfinite_error
from ringhaul.quant.nibbles import Nibbles
from ringhaul.quant.noise import NOISE_BITS, Noise
from ringhaul.ring.twins import find_twin


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


_NO_DICE = np.empty(0, np.int16)


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
        self._math = ARITHMETIC[dtype]
        self._scaled = np.empty(BATCH_ELEMENTS, dtype)
        self._nibbles = Nibbles() if codec.bits == 4 else None
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
        self._zero = np.array(0.0, dtype)
        self._constants = np.array(
            [
                codec.step_share,
                self._math.rounder,
                self._math.step_min,
                self._math.near_zero,
                self._math.multiple_min,
                self._math.largest,
                *(0.0, 1.0, 0.5, 2.0**-NOISE_BITS),
            ],
            dtype,
        )
        #: Of magnitudes in a header, and of zero points: beyond, decoding takes care.
        magnitude_max, origin_max = self._math.largest / HEADROOM, self._math.largest
        if codec.has_zero_point:
            magnitude_max, origin_max = (
                self._math.largest / self._math.rounder / 2,
                self._math.rounder,
            )
        self._magnitude_max, self._origin_max = (
            float(dtype.type(bound)) for bound in (magnitude_max, origin_max)
        )
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
        header = self._header[: 2 * self._block_count(values.size)]
        body = out[header.nbytes :]
        codes = body if self._nibbles is None else self._nibbles.codes[: values.size]
        dice = None if self._noise is None else self._noise.dice(values.size, nonce)
        twin = find_twin("encode", values)
        if twin is None or not twin(
            values,
            header,
            codes,
            _NO_DICE if dice is None else dice,
            self._codec.block_elements,
            self._constants,
            self._codec.has_zero_point,
        ):
            self._encode(values, header, codes, dice)
        np.copyto(out[: header.nbytes].view(self._wire_dtype), header)
        if self._nibbles is not None:
            self._nibbles.pack(values.size, body)

    def _encode(
        self, values: Values, header: Values, codes: Bytes, dice: NDArray[np.int16] | None
    ) -> None:
        blocks = header.size // 2
        anchor = self._plan(values, header[:blocks], header[blocks:])
        noise = None
        if dice is not None:
            assert self._noise is not None
            noise = self._noise.spread(dice)
        for elements, rows, row_count in self._rows(values.size):
            source = values[elements].reshape(row_count, -1)
            scaled = self._scaled[elements].reshape(row_count, -1)
            if anchor is not None:
                source = np.subtract(source, anchor[rows, None], out=scaled)
            np.multiply(source, self._inverse[rows, None], out=scaled)
            if noise is not None:
                np.add(scaled, noise[elements].reshape(row_count, -1), out=scaled)
            np.add(scaled, self._shift[rows, None], out=scaled)
        rounded = self._scaled[: values.size].view(self._math.bits)
        np.copyto(codes, rounded, casting="unsafe")

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
        if step_max > self._math.largest / HEADROOM:
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
        np.add(bottom, self._zero, out=bottom)  # no negative zero, of which CPUs differ
        np.subtract(self._rounder, bottom, out=shift)

    # -- Decode -------------------------------------------------------------------------------

    def decode(self, data: Bytes, out: Values) -> None:
        if not self._decode_compiled("decode", data, out):
            self._decode(data, out)

    def decode_add(self, data: Bytes, own: Values, out: Values) -> bool:
        return self._decode_compiled("decode_add", data, own, out)

    def _decode_compiled(self, name: str, data: Bytes, *arrays: Values) -> bool:
        """Have the compiled twin decode; False: there is none, or it must not."""
        work, is_plain = find_twin(name, *arrays), find_twin("is_plain", *arrays)
        if work is None or is_plain is None:
            return False
        element_count = arrays[-1].size
        header = self._header[: 2 * self._block_count(element_count)]
        np.copyto(header, data[: header.nbytes].view(self._wire_dtype))
        if not is_plain(header, self._magnitude_max, self._origin_max):
            return False
        codes = self._codes(element_count, data[header.nbytes :])
        work(codes, header, self._codec.block_elements, self._codec.has_zero_point, *arrays)
        return True

    def _decode(self, data: Bytes, out: Values) -> None:
        blocks = self._block_count(out.size)
        header = self._header[: 2 * blocks]
        header_bytes = header.nbytes
        np.copyto(header, data[:header_bytes].view(self._wire_dtype))
        is_huge = self._check_header(header)
        np.copyto(out, self._codes(out.size, data[header_bytes:]))
        if is_huge:
            scaled = header[:blocks] if self._codec.has_zero_point else header
            np.multiply(scaled, 1.0 / HEADROOM, out=scaled)
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
            bound = self._math.largest / HEADROOM
            np.clip(out, -bound, bound, out=out)
            np.multiply(out, HEADROOM, out=out)

    def _check_header(self, header: Values) -> bool:
        """Whether a value might overflow on the way to a result.

        Raises:
            WireError: the header is none that `encode` writes, and might end in no number.
        """
        largest = largest_magnitude(self._codec.name, header, self._magnitude)
        if (
            self._codec.has_zero_point
            and np.maximum.reduce(self._magnitude[header.size // 2 : header.size])
            > self._origin_max
        ):
            raise WireError(f'zero points of codec "{self._codec.name}" that are out of range')
        return largest > self._magnitude_max

    def _codes(self, element_count: int, body: Bytes) -> Bytes:
        """One code a byte."""
        return body if self._nibbles is None else self._nibbles.unpack(element_count, body)
