"""What a codec is: the protocols that ours follow and that users may implement.

A `Codec` is a name and a factory; a `Coder` is what it makes for one thread and one dtype, with
its scratch. Coders see batches of at most `BATCH_ELEMENTS` elements, so that their operands stay
in the cache; a segment travels as its encoded batches one after the other.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ringhaul.errors import CodecError
from ringhaul.texts import printable

#: Elements a coder is handed at a time: operands and scratch stay in the second-level cache, and
#: what NumPy takes per call, some 30 calls of 1.5 us, is small beside 100 us for the elements.
#: Part of the wire format, as the last batch of a segment is cut shorter than the others.
BATCH_ELEMENTS = 128 * 1024

Values = NDArray[Any]
Bytes = NDArray[np.uint8]


class UnfitValueError(CodecError):
    """A value that the codec cannot carry: NaN, infinity, or one beyond its range.

    Nothing of its segment was sent. Correct the array (gradients often overflow one step
    before they are noticed), or use codec "raw", which carries whatever there is.

    Attributes:
        index: of the first such element, counted from the start of the values handed in.
        value: what stands there; in a ring it may be a sum over several members.
    """

    def __init__(self, codec: str, index: int, value: float, why: str) -> None:
        text = f'codec "{codec}" cannot carry element {index}, {value!r}: {why}'
        super().__init__(printable(text))
        self.codec = codec
        self.index = index
        self.value = value
        self.why = why

    def moved(self, offset: int) -> "UnfitValueError":
        """The same error, counted from a start that lies `offset` elements before."""
        return UnfitValueError(self.codec, self.index + offset, self.value, self.why)


@runtime_checkable
class Coder(Protocol):
    """Encodes and decodes batches of one dtype; one per thread, since it holds scratch.

    Arrays are one-dimensional and C-contiguous, of 1 to `BATCH_ELEMENTS` elements. `encode`
    and `decode` neither keep nor change what they read. Whatever else they raise than is said
    here fails the call for all members, with a `CodecError` that names it.
    """

    def encoded_size(self, element_count: int) -> int:
        """Bytes of a batch of so many elements, 1 at least: exact, and the same on every peer."""
        ...

    def encode(self, values: Values, out: Bytes, nonce: int) -> None:
        """Write `values`, of the coder's dtype, as exactly `encoded_size` bytes.

        Args:
            values: shape (n,).
            out: shape (encoded_size(n),).
            nonce: differs between any two batches that are ever encoded; seeds stochastic
                rounding, others ignore it. The same nonce and values give the same bytes.

        Raises:
            UnfitValueError: a value cannot be carried; `out` is then undefined.
        """
        ...

    def decode(self, data: Bytes, out: Values) -> None:
        """Write the values of an encoded batch.

        Bit-deterministic: only element-wise IEEE operations, each rounded by itself, and no
        subnormal results from normal data; all peers decode the same bytes to the same bits.

        Args:
            data: shape (encoded_size(n),), from another peer: any bytes at all.
            out: shape (n,), of the coder's dtype.

        Raises:
            WireError: these bytes are not what any `encode` writes; `out` is then undefined.
        """
        ...


@runtime_checkable
class AddingCoder(Coder, Protocol):
    """A coder that may decode and add in one pass over memory; none has to."""

    def decode_add(self, data: Bytes, own: Values, out: Values) -> bool:
        """Write what `decode` gives, plus `own`, of the coder's dtype: the bits of two steps.

        False: not done, `out` is undefined, and whatever is wrong with `data`, `decode` says.
        """
        ...


@runtime_checkable
class Codec(Protocol):
    """How values are packed on the wire. Stateless, so one object serves all threads.

    Attributes:
        name: what users write and what members compare: codecs of one name have one wire
            format. Neither empty nor with a "+".
        is_lossy: decoded values may differ from encoded ones. Such a codec is asked for
            float32 and float64 coders only; refuses integers and "prod".
    """

    @property
    def name(self) -> str: ...

    @property
    def is_lossy(self) -> bool: ...

    def make_coder(self, dtype: np.dtype[Any]) -> Coder:
        """A new coder for `dtype`: float32 or float64; any supported one if not lossy."""
        ...

    def error_bound(self, low: float, high: float) -> float:
        """The largest |decoded - encoded| where all values lie in [low, high], for float32.

        Without the last few bits of float32 arithmetic: 4 * 2**-24 * max(|low|, |high|).
        """
        ...


def nonfinite_error(codec: str, values: Values) -> UnfitValueError:
    """The refusal of the first NaN or infinity in `values`; there has to be one."""
    index = int(np.flatnonzero(~np.isfinite(values))[0])
    return UnfitValueError(codec, index, float(values[index]), "it is not finite")


#: A ufunc with an operand that is broadcast along rows shorter than NumPy's buffer copies through
#: the buffer, at half the speed: the default of 8192 elements is longer than our blocks.
_UFUNC_BUFFER_ELEMENTS = 512


@contextlib.contextmanager
def quiet_arithmetic() -> Iterator[None]:
    """Let numbers overflow silently and rows of a block's length run at full speed.

    Around every call of a `Coder`; costs some 10 us, so once a segment and not once a batch.
    Holds for the calling thread only.
    """
    with np.errstate(all="ignore"):
        buffer = np.setbufsize(_UFUNC_BUFFER_ELEMENTS)
        try:
            yield
        finally:
            np.setbufsize(buffer)
