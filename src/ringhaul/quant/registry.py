"""Codecs by name, and what none of them may be asked for."""

from typing import Any

import numpy as np

from ringhaul.ids import ReduceOp
from ringhaul.limits import NAME_LENGTH_MAX
from ringhaul.quant.base import Codec
from ringhaul.quant.blocks import UINT4, UINT4_SR, UINT8, UINT8_SR, UINT8_ZP
from ringhaul.quant.compression import ZstdCodec
from ringhaul.quant.fine import UINT4_FINE, UINT8_FINE
from ringhaul.quant.plain import BF16, FP16, RawCodec

_ZSTD = "+zstd"
RAW = RawCodec()
_CODECS: tuple[Codec, ...] = (
    *(RAW, FP16, BF16),
    *(UINT8, UINT8_ZP, UINT8_SR, UINT8_FINE),
    *(UINT4, UINT4_SR, UINT4_FINE),
)
_codecs: dict[str, Codec] = {codec.name: codec for codec in _CODECS}


def codec_names() -> tuple[str, ...]:
    """The names that may be asked for; "+zstd" may follow each."""
    return tuple(_codecs)


def register_codec(codec: Codec) -> None:
    """Make `codec` known by its name, in this process. Do the same in all members.

    Raises:
        TypeError: it is no `Codec`.
        ValueError: the name is taken by another codec, or is no name.
    """
    if find_codec(codec) is not codec:
        raise TypeError(f"give the codec itself, not its name {codec!r}")
    name = codec.name
    if "+" in name:
        raise ValueError(f'a codec\'s name is printable and without "+"; not {name!r}')
    if _codecs.setdefault(name, codec) is not codec:
        raise ValueError(f'there is a codec "{name}" already')


def find_codec(codec: object) -> Codec:
    """The codec of a name such as "uint8" or "uint8+zstd"; a codec itself is given back.

    Raises:
        TypeError: neither a name nor a codec, or the codec's name is no string.
        ValueError: a name that is not known; the message lists those that are. Or the codec's
            own is none that messages can carry.
    """
    if not isinstance(codec, str):
        if not isinstance(codec, Codec) or isinstance(codec, type):
            raise TypeError(f"codec is a name or a ringhaul.Codec, not {codec!r}")
        return _with_proper_name(codec)
    found = _codecs.get(codec.removesuffix(_ZSTD))
    if found is None:
        names = ", ".join(f'"{name}"' for name in _codecs)
        raise ValueError(f'there is no codec {codec!r}; there are {names}, each also with "+zstd"')
    return _with_proper_name(ZstdCodec(found)) if codec.endswith(_ZSTD) else found


def _with_proper_name(codec: Codec) -> Codec:
    """Refuse a name that a message could not carry: its call would never end."""
    name = codec.name
    if not isinstance(name, str):
        raise TypeError(f"a codec's name is a string, not {name!r:.80}")
    if not name or len(name) > NAME_LENGTH_MAX or not name.isprintable():
        raise ValueError(
            f"a codec's name is printable, of 1 to {NAME_LENGTH_MAX} characters; not {name!r:.80}"
        )
    return codec


def check_codec(codec: Codec, op: ReduceOp, dtype: np.dtype[Any]) -> None:
    """Refuse what a lossy codec cannot do well: integers, and products.

    "min" and "max" may be lossy: the result is then within the sum of the errors of the
    encodings, as for "sum"; but it may lie outside of what any member passed.

    Raises:
        TypeError: the dtype is an integer.
        ValueError: the operation is refused.
    """
    if not codec.is_lossy:
        return
    if dtype.kind in "iu":
        raise TypeError(
            f'codec "{codec.name}" is lossy and refuses {dtype.name}: use codec "raw" or '
            '"raw+zstd", or cast the array to a float dtype first'
        )
    if op is ReduceOp.PROD:
        raise ValueError(
            f'codec "{codec.name}" is lossy, and a product would multiply its errors: use codec '
            '"raw", or sum the logarithms'
        )
    if codec.name.endswith("+feedback") and op in (ReduceOp.MIN, ReduceOp.MAX):
        raise ValueError(f'error feedback has no meaning for op "{op.value}"')
