"""What a ring does with a codec: every hop of a segment, in batches that stay in the cache.

Decides the order of decoding, widening, combining, dividing, encoding; knows nothing of ranks
or streams. No temporary is larger than a batch.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ringhaul.errors import CodecError, WireError
from ringhaul.ids import ReduceOp
from ringhaul.quant.base import (
    BATCH_ELEMENTS,
    AddingCoder,
    Bytes,
    Codec,
    Coder,
    UnfitValueError,
    Values,
    quiet_arithmetic,
)
from ringhaul.quant.compression import Compressor, ZstdCodec
from ringhaul.quant.error_meter import ErrorMeter
from ringhaul.quant.feedback import ErrorFeedback, Residual
from ringhaul.quant.guard import is_foreign, make_coder
from ringhaul.quant.plain import RawCodec
from ringhaul.quant.registry import check_codec
from ringhaul.ring.plan import Phase
from ringhaul.ring.reduce import Kernel
from ringhaul.wire.segment_header import PAYLOAD_BYTES_MAX

_NONCE_MAX = 2**64
Buffer = bytes | bytearray | memoryview | Bytes


class SegmentCoder:
    """Encodes, passes on, finishes and decodes segments of one array.

    For one thread at a time: it holds some MB of scratch. Arrays are one-dimensional and
    contiguous, at least one element long; bytes are anything with the buffer protocol. `own`
    and `result` have the dtype of the user's array. Whatever raises leaves the outputs undefined
    and the coder usable.

    Args:
        codec: what `find_codec` gave.
        op, dtype, world_size: of the collective.
        clock: seconds, monotonic; tells "+zstd" what an attempt cost.

    Attributes:
        compressor: of a "+zstd" codec: set its `link_bytes_per_s`; None for other codecs.
        is_raw: what is not compressed are the values themselves.
        is_foreign: the codec is a user's: `check_sizes` before anything is encoded.

    Raises:
        TypeError, ValueError: as `check_codec` and `check_op` say.
        CodecError: the codec is a user's, and failed; so do all methods that use it.
    """

    def __init__(
        self,
        codec: Codec,
        op: ReduceOp,
        dtype: np.dtype[Any],
        world_size: int,
        clock: Callable[[], float] | None = None,
    ) -> None:
        check_codec(codec, op, dtype)
        self._kernel = Kernel(op, dtype, world_size)
        self._loss_factor = world_size if op is ReduceOp.AVG else 1
        self._wide = self._kernel.accumulate_dtype
        packed = codec.codec if isinstance(codec, ErrorFeedback) else codec
        self.compressor: Compressor | None = None
        inner = packed.inner if isinstance(packed, ZstdCodec) else packed
        self.is_raw = isinstance(inner, RawCodec)
        self._words = {Phase.REDUCE_SCATTER: 1, Phase.ALL_GATHER: 1}
        self.is_foreign = is_foreign(inner)
        #: Kept, as whoever keeps coders knows them by it.
        self._codec = codec
        self._partial_coder = make_coder(inner, self._wide)
        self._adding_coder: AddingCoder | None = None
        if self._kernel.plain_ufunc is np.add and isinstance(self._partial_coder, AddingCoder):
            self._adding_coder = self._partial_coder
        self._is_lossy = codec.is_lossy
        self._final_dtype = self._wide if self._is_lossy else self._kernel.dtype
        self._final_coder = self._partial_coder
        if self._final_dtype != self._wide:
            self._final_coder = make_coder(inner, self._final_dtype)
        if isinstance(packed, ZstdCodec):
            self.compressor = Compressor(clock)
            self._words[Phase.REDUCE_SCATTER] = packed.word_bytes(self._wide)
            self._words[Phase.ALL_GATHER] = packed.word_bytes(self._final_dtype)
        self._partial, self._own, self._decoded = (
            np.empty(BATCH_ELEMENTS, self._wide) for _ in range(3)
        )

    # -- Sizes --------------------------------------------------------------------------------

    def encoded_size(self, phase: Phase, element_count: int) -> int:
        """Bytes of an encoded segment: exact, or with "+zstd" the most it may have."""
        coder = self._coder(phase)
        whole, rest = divmod(element_count, BATCH_ELEMENTS)
        size = whole * coder.encoded_size(BATCH_ELEMENTS) if whole else 0
        return size + (coder.encoded_size(rest) if rest else 0)

    def check_sizes(self, element_counts: Iterable[int]) -> None:
        """Refuse sizes of segments that cannot travel; later none of these is refused.

        Raises:
            CodecError: a size is none, or one that no receiver takes.
        """
        for element_count in element_counts:
            for phase in Phase:
                size = self.encoded_size(phase, element_count)
                if size > PAYLOAD_BYTES_MAX:
                    raise CodecError(
                        f'codec "{self._codec.name}" makes {size} bytes of {element_count} '
                        f"elements; at most {PAYLOAD_BYTES_MAX} can be sent at a time"
                    )

    def is_size(self, phase: Phase, element_count: int, payload_bytes: int) -> bool:
        """May a segment of so many elements have a payload of so many bytes?"""
        size = self.encoded_size(phase, element_count)
        if self.compressor is not None:
            return 0 < payload_bytes <= size
        return payload_bytes == size

    def _coder(self, phase: Phase) -> Coder:
        return self._final_coder if phase is Phase.ALL_GATHER else self._partial_coder

    # -- The hops of a segment ----------------------------------------------------------------

    def encode_own(
        self,
        own: Values,
        out: Buffer,
        *,
        nonce: int = 0,
        residual: Residual | None = None,
        meter: ErrorMeter | None = None,
    ) -> int:
        """The first hop: write this rank's own values as a partial result.

        Args:
            own: shape (n,); only read.
            out: at least `encoded_size(REDUCE_SCATTER, n)` bytes.
            nonce: a number below 2**64 that no other segment that this peer encodes has, in
                any operation; needed by stochastic rounding only.
            residual: what error feedback carries, and where it keeps what is lost now.
            meter: sums up what is lost now, if that is asked for.

        Returns:
            Bytes written, the payload to send.

        Raises:
            UnfitValueError: a value cannot be carried; `index` counts from the start of `own`.
        """
        target = as_uint8(out)
        with quiet_arithmetic():
            for index, batch, place in self._batches(Phase.REDUCE_SCATTER, own.size):
                values = self._own_values(own, batch, residual)
                self._encode_batch(values, target[place], batch, nonce, index)
                self._keep_loss(values, target[place], batch, residual, meter)
        return self._pack(Phase.REDUCE_SCATTER, own.size, target)

    def pass_on(
        self,
        data: Buffer,
        own: Values,
        out: Buffer,
        *,
        nonce: int = 0,
        residual: Residual | None = None,
        meter: ErrorMeter | None = None,
    ) -> int:
        """A hop of the reduce-scatter: combine a partial result with own values, encode again.

        `data` is the payload that came; the rest is as for `encode_own`.

        Raises:
            UnfitValueError: a partial result cannot be carried, such as a sum that overflowed.
            WireError: `data` is no encoded segment.
        """
        target = as_uint8(out)
        plain = self._unpack(Phase.REDUCE_SCATTER, own.size, data)
        with quiet_arithmetic():
            for index, batch, place in self._batches(Phase.REDUCE_SCATTER, own.size):
                values = self._combine_batch(plain[place], own, batch, residual)
                self._encode_batch(values, target[place], batch, nonce, index)
                self._keep_loss(values, target[place], batch, residual, meter)
        return self._pack(Phase.REDUCE_SCATTER, own.size, target)

    def finish(
        self,
        data: Buffer,
        own: Values,
        out: Buffer,
        result: Values,
        *,
        nonce: int = 0,
        residual: Residual | None = None,
        meter: ErrorMeter | None = None,
    ) -> int:
        """The owner's hop: the final result, encoded once, and the values of those very bytes.

        `out` has at least `encoded_size(ALL_GATHER, n)` bytes; `result`, of shape (n,), becomes
        what `decode` makes of them on every other peer. The rest is as for `pass_on`.
        """
        target = as_uint8(out)
        plain = self._unpack(Phase.REDUCE_SCATTER, own.size, data)
        finals = self._batches(Phase.ALL_GATHER, own.size)
        with quiet_arithmetic():
            for index, batch, place in self._batches(Phase.REDUCE_SCATTER, own.size):
                _, _, final_place = next(finals)
                values = self._combine_batch(plain[place], own, batch, residual)
                if self._loss_factor != 1:
                    np.divide(values, self._wide.type(self._loss_factor), out=values)
                if self._final_dtype == self._wide:
                    self._encode_batch(values, target[final_place], batch, nonce, index, final=True)
                    self._decode_batch(target[final_place], result[batch])
                    self._keep_loss(values, target[final_place], batch, residual, meter, final=True)
                else:
                    self._kernel.narrow(values, result[batch])
                    self._final_coder.encode(result[batch], target[final_place], 0)
        return self._pack(Phase.ALL_GATHER, own.size, target)

    def decode(self, data: Buffer, result: Values) -> None:
        """Write the values of a final segment; the same bits on every peer.

        Raises:
            WireError: `data` is no encoded segment.
        """
        plain = self._unpack(Phase.ALL_GATHER, result.size, data)
        with quiet_arithmetic():
            for _, batch, place in self._batches(Phase.ALL_GATHER, result.size):
                self._decode_batch(plain[place], result[batch])

    def decode_add(self, data: Buffer, own: Values, out: Values) -> None:
        """Write a partial result combined with own values, without encoding it again.

        `out` has shape (n,) and the accumulate dtype: float32, or float64 for float64 arrays.

        Raises:
            WireError: `data` is no encoded segment.
        """
        plain = self._unpack(Phase.REDUCE_SCATTER, own.size, data)
        with quiet_arithmetic():
            for _, batch, place in self._batches(Phase.REDUCE_SCATTER, own.size):
                if not self._decode_add_batch(plain[place], own[batch], out[batch]):
                    self._partial_coder.decode(plain[place], out[batch])
                    self._kernel.combine(out[batch], own[batch], out[batch])

    # -- One batch ----------------------------------------------------------------------------

    def _batches(self, phase: Phase, element_count: int) -> Iterator[tuple[int, slice, slice]]:
        """Index, elements, and bytes of each batch of a segment."""
        coder = self._coder(phase)
        offset = 0
        for index, start in enumerate(range(0, element_count, BATCH_ELEMENTS)):
            stop = min(start + BATCH_ELEMENTS, element_count)
            end = offset + coder.encoded_size(stop - start)
            yield index, slice(start, stop), slice(offset, end)
            offset = end

    def _own_values(self, own: Values, batch: slice, residual: Residual | None) -> Values:
        """Own values in the accumulate dtype, with what is carried; may be `own` itself."""
        values = own[batch]
        if self._kernel.is_widening:
            wide = self._own[: values.size]
            self._kernel.widen(values, wide)
            values = wide
        if residual is not None:
            values = np.add(values, residual.carried[batch], out=self._own[: values.size])
        return values

    def _combine_batch(
        self, data: Bytes, own: Values, batch: slice, residual: Residual | None
    ) -> Values:
        partial = self._partial[: batch.stop - batch.start]
        if residual is None and self._decode_add_batch(data, own[batch], partial):
            return partial
        self._partial_coder.decode(data, partial)
        if residual is not None:
            np.add(partial, self._own_values(own, batch, residual), out=partial)
        else:
            self._kernel.combine(partial, own[batch], partial)
        return partial

    def _decode_add_batch(self, data: Bytes, own: Values, out: Values) -> bool:
        """Decode and add in one, where that is possible."""
        adding = self._adding_coder
        return adding is not None and adding.decode_add(data, own, out)

    def _encode_batch(
        self,
        values: Values,
        out: Bytes,
        batch: slice,
        nonce: int,
        index: int,
        final: bool = False,
    ) -> None:
        coder = self._final_coder if final else self._partial_coder
        try:
            coder.encode(values, out, nonce % _NONCE_MAX + index * _NONCE_MAX)
        except UnfitValueError as error:
            raise error.moved(batch.start) from None

    def _decode_batch(self, data: Bytes, result: Values) -> None:
        if self._final_dtype == result.dtype:
            self._final_coder.decode(data, result)
        else:
            wide = self._decoded[: result.size]
            self._final_coder.decode(data, wide)
            self._kernel.narrow(wide, result)

    def _keep_loss(
        self,
        values: Values,
        data: Bytes,
        batch: slice,
        residual: Residual | None,
        meter: ErrorMeter | None,
        final: bool = False,
    ) -> None:
        """Keep what encoding `values` as `data` lost, in units of this rank's own values."""
        if residual is None and (meter is None or not self._is_lossy):
            return
        lost = self._decoded[: values.size] if residual is None else residual.pending[batch]
        (self._final_coder if final else self._partial_coder).decode(data, lost)
        np.subtract(values, lost, out=lost)
        if final and self._loss_factor != 1:
            np.multiply(lost, self._wide.type(self._loss_factor), out=lost)
        # Infinity, which 16-bit codecs carry, less itself: nothing that could be made good.
        np.copyto(lost, 0.0, where=~np.isfinite(lost))
        if meter is not None:
            meter.add(lost, self._loss_factor)

    # -- Compression --------------------------------------------------------------------------

    def _pack(self, phase: Phase, element_count: int, out: Bytes) -> int:
        size = self.encoded_size(phase, element_count)
        if self.compressor is None:
            return size
        return self.compressor.pack(out, size, self._words[phase])

    def _unpack(self, phase: Phase, element_count: int, data: Buffer) -> Bytes:
        payload = as_uint8(data)
        size = self.encoded_size(phase, element_count)
        if self.compressor is not None:
            return self.compressor.unpack(payload, size, self._words[phase])
        if payload.size != size:
            raise WireError(f"a segment of {payload.size} bytes instead of {size}")
        return payload


def as_uint8(data: Buffer) -> Bytes:
    """The bytes of anything with the buffer protocol; writable if it is."""
    return np.frombuffer(data, np.uint8)
