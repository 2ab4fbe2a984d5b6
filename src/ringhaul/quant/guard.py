"""Coders of users behind a fence: whatever they raise or answer fails the call, and nothing else.

Decides what of it is a `CodecError`, for all members; our own coders go without a fence.
"""

import contextlib
import operator
from typing import Any

import numpy as np

from ringhaul.errors import CodecError, WireError
from ringhaul.quant.base import AddingCoder, Bytes, Codec, Coder, UnfitValueError, Values
from ringhaul.quant.blocks import BlockCodec
from ringhaul.quant.fine import FineCodec
from ringhaul.quant.plain import CastCodec, RawCodec
from ringhaul.texts import describe_error

_OWN = (RawCodec, CastCodec, BlockCodec, FineCodec)


def is_foreign(codec: Codec) -> bool:
    """Is this a codec of a user's?"""
    return type(codec) not in _OWN


def make_coder(codec: Codec, dtype: np.dtype[Any]) -> Coder:
    """A coder of `codec`, fenced if it is a user's.

    Raises:
        CodecError: `make_coder` of a user's raised, or gave no coder.
    """
    if not is_foreign(codec):
        return codec.make_coder(dtype)
    try:
        coder = codec.make_coder(dtype)
        is_adding = isinstance(coder, AddingCoder)
        if not isinstance(coder, Coder):
            raise TypeError(f"it gave a {type(coder).__name__}, which is no coder")
    except Exception as error:
        raise _failure(codec.name, "make_coder", error) from error
    return GuardedAddingCoder(codec.name, coder) if is_adding else GuardedCoder(codec.name, coder)


def _failure(codec: str, what: str, error: Exception) -> CodecError:
    """What a user's exception means for the call."""
    if isinstance(error, UnfitValueError):
        with contextlib.suppress(Exception):  # if it is sound; anybody can make one
            return error.moved(0)
    return CodecError(f'codec "{codec}" failed in {what}: {describe_error(error)}')


class GuardedCoder:
    """A coder of a user's. Asks for each size once: what it says then holds for good."""

    def __init__(self, codec: str, coder: Any) -> None:  # noqa: ANN401 - what a user calls a coder
        self._codec = codec
        self._coder = coder
        #: By element count, of which there are `BATCH_ELEMENTS`.
        self._sizes: dict[int, int] = {}

    def encoded_size(self, element_count: int) -> int:
        """As `Coder.encoded_size`; a payload without a byte would be refused by who gets it."""
        size = self._sizes.get(element_count)
        if size is None:
            try:
                size = operator.index(self._coder.encoded_size(element_count))
                if size < 1:
                    raise ValueError(f"{size} bytes for {element_count} elements; 1 at least")
            except Exception as error:
                raise _failure(self._codec, "encoded_size", error) from error
            self._sizes[element_count] = size
        return size

    def encode(self, values: Values, out: Bytes, nonce: int) -> None:
        """As `Coder.encode`."""
        try:
            self._coder.encode(values, out, nonce)
        except Exception as error:
            raise _failure(self._codec, "encode", error) from error

    def decode(self, data: Bytes, out: Values) -> None:
        """As `Coder.decode`."""
        try:
            self._coder.decode(data, out)
        except WireError as error:
            raise WireError(f'codec "{self._codec}": {describe_error(error)}') from error
        except Exception as error:
            raise _failure(self._codec, "decode", error) from error


class GuardedAddingCoder(GuardedCoder):
    """One that can decode and add in one pass."""

    def decode_add(self, data: Bytes, own: Values, out: Values) -> bool:
        """As `AddingCoder.decode_add`."""
        try:
            return bool(self._coder.decode_add(data, own, out))
        except Exception as error:
            raise _failure(self._codec, "decode_add", error) from error
