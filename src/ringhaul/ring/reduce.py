"""Element-wise kernels: what a received segment and a rank's own values make together.

Decides the arithmetic of every operation and dtype, and which of them are refused. Values
are always combined as received-then-own, on one path per chunk, so all ranks get the same
bits. Knows nothing of segments, ranks or memory that is not handed in.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ringhaul.ids import ReduceOp
from ringhaul.ring.casts import BFLOAT16, BLOCK_ELEMENTS, FLOAT16, BlockCast
from ringhaul.ring.twins import find_twin

_SUPPORTED: dict[str, np.dtype[Any]] = {
    dtype.name: dtype
    for dtype in (
        *map(np.dtype, ("int8", "int16", "int32", "int64")),
        *map(np.dtype, ("uint8", "uint16", "uint32", "uint64")),
        FLOAT16,
        BFLOAT16,
        *map(np.dtype, ("float32", "float64")),
    )
}
_FLOAT32 = np.dtype(np.float32)

_UFUNCS: dict[ReduceOp, np.ufunc] = {
    ReduceOp.SUM: np.add,
    ReduceOp.AVG: np.add,
    ReduceOp.PROD: np.multiply,
    ReduceOp.MIN: np.minimum,
    ReduceOp.MAX: np.maximum,
}


def element_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """The supported dtype that `dtype` is or names: `"bfloat16"`, `np.float32`, `"f4"`.

    Raises:
        TypeError: no supported dtype, or not in this machine's byte order. Convert the
            array with `astype` first; the message names the dtypes there are.
    """
    if isinstance(dtype, str) and dtype in _SUPPORTED:
        return _SUPPORTED[dtype]
    return _known(np.dtype(dtype))[0]


@functools.lru_cache(maxsize=64)
def _known(given: np.dtype[Any]) -> tuple[np.dtype[Any], str]:
    """A supported dtype and its name, which NumPy puts together anew each time it is asked."""
    supported = _SUPPORTED.get(given.name)
    if supported is None:
        raise TypeError(f"dtype {given.name} cannot be reduced; use one of {', '.join(_SUPPORTED)}")
    if not given.isnative:
        raise TypeError(
            f"{given.name} in foreign byte order ({given.str}) cannot be reduced; convert the "
            f"array with astype({given.name!r}) first"
        )
    return supported, supported.name


def dtype_name(dtype: DTypeLike) -> str:
    """The name under which a supported dtype travels; `element_dtype` takes it back.

    Raises:
        TypeError: as for `element_dtype`.
    """
    return _known(dtype if isinstance(dtype, np.dtype) else element_dtype(dtype))[1]


def accumulate_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype of partial results: float32 for the 16-bit floats, else `dtype` itself.

    Raises:
        TypeError: as for `element_dtype`.
    """
    own = element_dtype(dtype)
    return _FLOAT32 if own in (FLOAT16, BFLOAT16) else own


def check_op(op: ReduceOp, dtype: DTypeLike) -> None:
    """Refuse what has no meaning: the average of integers, and dtypes without kernels.

    Raises:
        TypeError: the message says what to call instead.
    """
    own = element_dtype(dtype)
    if op is ReduceOp.AVG and own.kind in "iu":
        raise TypeError(
            f'op "avg" of {own.name} would have to round; use op "sum" and divide by world_size '
            "as you like it, or cast the array to a float dtype first"
        )


class Kernel:
    """The arithmetic of one operation on one dtype in one world size.

    Arrays are one-dimensional, contiguous, and of equal length within a call. `received`
    and partial results have `accumulate_dtype`, own values have `dtype`. An output may be
    the very array that is an input; other overlaps give garbage. Integers wrap and floats
    overflow to infinity silently. Holds scratch, so a kernel is for one thread at a time.

    Args:
        op: AVG divides by `world_size`, in `finish` only.
        dtype: of the user's array.
        world_size: number of members that contribute.

    Raises:
        TypeError: as `check_op` says.
    """

    def __init__(self, op: ReduceOp, dtype: DTypeLike, world_size: int) -> None:
        check_op(op, dtype)
        assert world_size >= 1, world_size
        self.op = op
        self.dtype = element_dtype(dtype)
        self.accumulate_dtype = accumulate_dtype(dtype)
        self.world_size = world_size
        self._ufunc = _UFUNCS[op]
        self._divisor = self.accumulate_dtype.type(world_size) if op is ReduceOp.AVG else None
        self._cast: BlockCast | None = None
        if self.is_widening:
            self._cast = BlockCast(self.dtype)
            self._scratch = np.empty(BLOCK_ELEMENTS, self.accumulate_dtype)

    @property
    def is_widening(self) -> bool:
        """Whether partial results are wider than the array; if not, own values travel as is."""
        return self.accumulate_dtype != self.dtype

    @property
    def plain_ufunc(self) -> np.ufunc | None:
        """The ufunc that `combine` amounts to, if there is nothing to widen."""
        return None if self.is_widening else self._ufunc

    @property
    def is_plain_finish(self) -> bool:
        """Whether `finish` does no more than `combine`: nothing to divide, widen or round."""
        return self._divisor is None and not self.is_widening

    def widen(self, own: NDArray[Any], out: NDArray[Any]) -> None:
        """Write own values in the accumulate dtype; exact."""
        self._check_arrays(own=own, wide=out)
        if self._cast is None:
            np.copyto(out, own)
            return
        with np.errstate(all="ignore"):
            for block in _blocks(own.size):
                self._cast.widen(own[block], out[block])

    def narrow(self, values: NDArray[Any], out: NDArray[Any]) -> None:
        """Write accumulated values rounded to the array's dtype: nearest, ties to even."""
        self._check_arrays(own=out, wide=values)
        if self._cast is None:
            np.copyto(out, values)
            return
        with np.errstate(all="ignore"):
            for block in _blocks(values.size):
                self._cast.narrow(values[block], out[block])

    def combine(self, received: NDArray[Any], own: NDArray[Any], out: NDArray[Any]) -> None:
        """Write received (op) own, in the accumulate dtype: what is passed on."""
        self._check_arrays(own=own, wide=received)
        self._check_arrays(own=own, wide=out)
        with np.errstate(all="ignore"):
            if self._cast is None:
                self._ufunc(received, own, out=out)
                return
            if self._add_with_twin(received, own, out):
                return
            for block in _blocks(own.size):
                wide = self._scratch[: own[block].size]
                self._cast.widen(own[block], wide)
                self._ufunc(received[block], wide, out=out[block])

    def finish(self, received: NDArray[Any], own: NDArray[Any], out: NDArray[Any]) -> None:
        """Write the result: received (op) own, divided if AVG, rounded once to `out.dtype`.

        `out` has the array's dtype, or the accumulate dtype for who quantizes it next.
        """
        self._check_arrays(own=own, wide=received)
        assert out.shape == own.shape, (out.shape, own.shape)
        assert out.dtype in (self.dtype, self.accumulate_dtype), out.dtype
        if self._divisor is None and out.dtype == self.accumulate_dtype:
            self.combine(received, own, out)
            return
        if out.dtype == self.dtype and self._finish_with_twin(received, own, out):
            return
        with np.errstate(all="ignore"):
            for block in _blocks(own.size):
                self._finish_block(received[block], own[block], out[block])

    def _add_with_twin(self, received: NDArray[Any], own: NDArray[Any], out: NDArray[Any]) -> bool:
        """Have a compiled kernel add 16-bit values; False: there is none."""
        if self._ufunc is not np.add:
            return False
        is_in_place = _address(out) == _address(received)
        twin = find_twin(
            f"add_to_{self.dtype.name}" if is_in_place else f"add_{self.dtype.name}",
            *(received, own, out),
        )
        if twin is None:
            return False
        patterns = own.view(np.uint16)
        if is_in_place:
            twin(out, patterns)
        else:
            twin(received, patterns, out)
        return True

    def _finish_with_twin(
        self, received: NDArray[Any], own: NDArray[Any], out: NDArray[Any]
    ) -> bool:
        """Have a compiled kernel add, divide and round; False: NumPy has to."""
        if self._cast is None or self._ufunc is not np.add or _address(out) == _address(own):
            return False  # `own` must live, as the twin may find a NaN and give up
        twin = find_twin(f"finish_{self.dtype.name}", received, own, out)
        divisor = np.float32(1.0) if self._divisor is None else self._divisor
        return twin is not None and bool(
            twin(received, own.view(np.uint16), divisor, out.view(np.uint16))
        )

    def _finish_block(self, received: NDArray[Any], own: NDArray[Any], out: NDArray[Any]) -> None:
        if self._cast is None:
            result = out
            self._ufunc(received, own, out=result)
        else:
            result = self._scratch[: own.size]
            self._cast.widen(own, result)
            self._ufunc(received, result, out=result)
        if self._divisor is not None:
            np.divide(result, self._divisor, out=result)
        if self._cast is None:
            return
        if out.dtype == self.dtype:
            self._cast.narrow(result, out)
        else:
            np.copyto(out, result)

    def _check_arrays(self, *, own: NDArray[Any], wide: NDArray[Any]) -> None:
        """Callers hand in what the plan says; anything else is our bug, and would broadcast."""
        assert own.ndim == 1, own.shape
        assert own.shape == wide.shape, (own.shape, wide.shape)
        assert own.dtype == self.dtype, (own.dtype, self.dtype)
        assert wide.dtype == self.accumulate_dtype, (wide.dtype, self.accumulate_dtype)


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _blocks(element_count: int) -> Iterator[slice]:
    for start in range(0, element_count, BLOCK_ELEMENTS):
        yield slice(start, start + BLOCK_ELEMENTS)
