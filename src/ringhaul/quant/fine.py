"""The finer quantizers: as `blocks.py`, with most of a block's range covered and the rest named.

The codes of a block cover a window that all but a few values lie in. Those outside have a code
too, of which the high bits are lost, and a slot that says where they are and on which side: so they
are as exact as the others, and the step is that of the window and not of the whole range.

Where a block has values of both signs, or zero, its grid has a line at zero, so zeros come back
as zeros (sparse gradients stay sparse). Decides the wire format of "uint8-fine", "uint4-fine".

A batch is: the steps of all blocks, then their origins (little-endian floats of the coder's
dtype), then how many values are outside and their slots (see `slots.py`), then the codes. A code
stands for `code * step + origin`; outside of the window the code has 256 (16) added, or taken away
below. Two codes of 4 bits share a byte (see `nibbles.py`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ringhaul.quant.arithmetic import ARITHMETIC, HEADROOM, largest_magnitude
from ringhaul.quant.base import BATCH_ELEMENTS, Bytes, Coder, Values, nonfinite_error
from ringhaul.quant.layout import Layout, Rows, lay_out
from ringhaul.quant.nibbles import Nibbles
from ringhaul.quant.slots import BELOW, HALF, RUN, Halves, Indices, read_slots, write_slots
from ringhaul.quant.windows import Grid, GridPlanner, first_rank, next_rank, spread
from ringhaul.ring.twins import find_twin


@dataclass(frozen=True, slots=True)
class FineCodec:
    """Codes of `bits` bits on an even grid per block, and slots for what is outside of its window.

    Rounds to the nearest, ties to even: the error is at most half a step. A step is at most 1/255
    of the block's range for 8 bits, 1/15 for 4 bits. It is less if that puts so few values
    outside of the window that the block's slots tell of them all, and none farther than the window
    is wide: for a normal distribution two thirds of it, for heavy tails down to a third. The
    range includes zero in blocks that come within 2**-100 of it, and steps are not below 2**-126,
    so that no result depends on how a CPU treats subnormal numbers.

    NaN and infinity are refused. Constant blocks come back exactly (above 2**-100), zeros as
    zeros, where no value is above 2**126.
    """

    name: str
    bits: int
    block_elements: int
    block_slots: int
    is_lossy: bool = True

    @property
    def step_share(self) -> float:
        """The step as a share of what the codes of a window cover: a little less than that."""
        return (1.0 + 2.0**-12) / ((1 << self.bits) - 1)

    def make_coder(self, dtype: np.dtype[Any]) -> Coder:
        return _FineCoder(self, dtype)

    def error_bound(self, low: float, high: float) -> float:
        reach = high - low
        if low < 2.0**-100 and high > -(2.0**-100):
            reach = max(high, 0.0) - min(low, 0.0)
        return max(reach * self.step_share, 2.0**-126) / 2


#: Measured with `bench/codecs.py --blocks`. Half of each on 1024 values: the same error of normal
#: data, a fifth less (rms) where tails are heavy, and twice as many blocks, which cost NumPy time.
#: 32 or 96 slots: 14 % more or 7 % less error.
BLOCK_ELEMENTS = 2048
BLOCK_SLOTS = 68
UINT8_FINE = FineCodec("uint8-fine", 8, BLOCK_ELEMENTS, BLOCK_SLOTS)
UINT4_FINE = FineCodec("uint4-fine", 4, BLOCK_ELEMENTS, BLOCK_SLOTS)


class _FineCoder:
    """Works in rows of one block each; the last, shorter block is a row alone.

    All that is per block is planned for all rows at once, in arrays of one value a block: NumPy
    takes 1.5 us for a small operation.
    """

    def __init__(self, codec: FineCodec, dtype: np.dtype[Any]) -> None:
        assert codec.bits in (4, 8), codec
        assert codec.block_elements % RUN == 0, codec
        self._codec = codec
        self._dtype = dtype
        self._wire_dtype = dtype.newbyteorder("<")
        self._math = ARITHMETIC[dtype]
        self._code_max = (1 << codec.bits) - 1
        self._planner = GridPlanner(dtype, codec.step_share, self._code_max)
        self._scaled = np.empty(BATCH_ELEMENTS, dtype)
        self._halves: Halves = np.empty(BATCH_ELEMENTS, HALF)
        self._nibbles = Nibbles() if codec.bits == 4 else None
        blocks_max = -(-BATCH_ELEMENTS // codec.block_elements)
        self._ranks: Indices = np.empty(blocks_max, np.int64)
        self._header, self._magnitude = (np.empty(2 * blocks_max, dtype) for _ in range(2))
        self._constants = np.array(
            [
                codec.step_share,
                self._math.rounder,
                self._math.step_min,
                self._math.near_zero,
                self._math.largest,
                *(0.0, 1.0, 0.5, 1 / 3, self._code_max),
            ],
            dtype,
        )
        #: Of magnitudes in a header: beyond, decoding takes care.
        self._magnitude_max = float(dtype.type(self._math.largest / HEADROOM))

    def encoded_size(self, element_count: int) -> int:
        return self._layout(element_count).size

    def _layout(self, element_count: int) -> Layout:
        return lay_out(
            element_count,
            bits=self._codec.bits,
            block_elements=self._codec.block_elements,
            block_slots=self._codec.block_slots,
            itemsize=self._dtype.itemsize,
        )

    # -- Encode -------------------------------------------------------------------------------

    def encode(self, values: Values, out: Bytes, nonce: int) -> None:
        layout = self._layout(values.size)
        header = self._header[: 2 * layout.block_count]
        counts, slots, body = out[layout.counts], out[layout.slots], out[layout.codes]
        codes = body if self._nibbles is None else self._nibbles.codes[: values.size]
        twin = find_twin("encode_fine", values)
        if twin is None or not twin(
            values,
            header,
            counts,
            slots,
            codes,
            self._codec.block_elements,
            self._codec.block_slots,
            self._code_max,
            self._constants,
        ):
            for rows in layout.rows:
                taken = self._encode_rows(
                    rows, values, header, counts[rows.runs], slots, codes[rows.elements]
                )
                slots = slots[taken:]
            slots[:] = 0
            if self._nibbles is not None:
                np.bitwise_and(codes, self._code_max, out=codes)
        np.copyto(out[layout.header].view(self._wire_dtype), header)
        if self._nibbles is not None:
            self._nibbles.pack(values.size, body)

    def _encode_rows(
        self,
        rows: Rows,
        values: Values,
        header: Values,
        counts: Bytes,
        slots: Bytes,
        codes: Bytes,
    ) -> int:
        """Write steps, origins, and codes; counts, and the first slots: how many there are.

        Blocks with too many values outside of their window get a wider one, until none has.
        """
        source, halves = rows.of(values), rows.of(self._halves)
        blocks, limit = header.size // 2, rows.slot_limit
        step, origin = header[:blocks][rows.blocks], header[blocks:][rows.blocks]
        lows, highs = spread(source, self._scaled)
        ranks = self._ranks[: rows.count]
        rank: int | Indices = first_rank(limit)
        ranks[:] = rank
        which: slice | Indices = slice(None)
        while True:
            grid = self._planner.plan(lows[which], highs[which], rank)
            if grid is None:
                raise nonfinite_error(self._codec.name, values)
            step[which], origin[which] = grid.step, grid.origin
            halves[which] = self._quantized(source[which], grid)
            used, taken = write_slots(halves, self._code_max, codes, limit, counts, slots)
            if taken is not None:
                np.copyto(codes, halves.reshape(-1), casting="unsafe")
                return taken
            which = np.flatnonzero(used > limit)
            assert ranks[which].all(), "a window of the whole range has nothing outside"
            rank = ranks[which] = next_rank(ranks[which], used[which] - limit)

    def _quantized(self, source: Values, grid: Grid) -> Values:
        """Integers of the dtype's width, of which the low 16 bits are the code; in scratch."""
        scaled = self._scaled[: source.size].reshape(source.shape)
        if grid.anchor is not None:
            source = np.subtract(source, grid.anchor[:, None], out=scaled)
        np.multiply(source, grid.inverse[:, None], out=scaled)
        np.add(scaled, grid.shift[:, None], out=scaled)
        return scaled.view(self._math.bits)

    # -- Decode -------------------------------------------------------------------------------

    def decode(self, data: Bytes, out: Values) -> None:
        if not self._decode_compiled("decode_fine", data, out):
            self._decode(data, out)

    def decode_add(self, data: Bytes, own: Values, out: Values) -> bool:
        return self._decode_compiled("decode_add_fine", data, own, out)

    def _decode_compiled(self, name: str, data: Bytes, *arrays: Values) -> bool:
        """Have the compiled twin decode; False: there is none, or it must not."""
        work, is_plain = find_twin(name, *arrays), find_twin("is_plain", *arrays)
        if work is None or is_plain is None:
            return False
        layout, header, codes = self._read(arrays[-1].size, data)
        if not is_plain(header, self._magnitude_max, self._magnitude_max):
            return False
        done: bool = work(
            codes,
            data[layout.counts],
            data[layout.slots],
            header,
            self._codec.block_elements,
            self._code_max,
            *arrays,
        )
        return done

    def _read(self, element_count: int, data: Bytes) -> tuple[Layout, Values, Bytes]:
        """The header in the dtype of the coder, and one code a byte."""
        layout = self._layout(element_count)
        header = self._header[: 2 * layout.block_count]
        np.copyto(header, data[layout.header].view(self._wire_dtype))
        codes = data[layout.codes]
        if self._nibbles is not None:
            codes = self._nibbles.unpack(element_count, codes)
        return layout, header, codes

    def _decode(self, data: Bytes, out: Values) -> None:
        layout, header, codes = self._read(out.size, data)
        largest = largest_magnitude(self._codec.name, header, self._magnitude)
        is_huge = largest > self._magnitude_max
        if is_huge:
            np.multiply(header, 1.0 / HEADROOM, out=header)
        places, slots = read_slots(data[layout.counts], data[layout.slots], out.size)
        np.copyto(out, codes)
        if places.size:
            window = self._dtype.type(self._code_max + 1)
            out[places] += np.where(slots >= BELOW, -window, window)
        step, origin = header[: layout.block_count], header[layout.block_count :]
        for rows in layout.rows:
            values = rows.of(out)
            # Two roundings, never one: no fused operation may do both.
            np.multiply(values, step[rows.blocks, None], out=values)
            np.add(values, origin[rows.blocks, None], out=values)
        if is_huge:
            bound = self._math.largest / HEADROOM
            np.clip(out, -bound, bound, out=out)
            np.multiply(out, HEADROOM, out=out)
