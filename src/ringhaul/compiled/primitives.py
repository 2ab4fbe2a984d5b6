"""What kernels are made of: reading a float's bits, without numba's widening of small integers.

numba computes with 64-bit integers where operands have 8 or 32 bits; loops over those would not be
vectorized. Every function here is one or two machine instructions. Needs numba (the extra "fast").
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])

#: float32 and float64, and integers of the same width.
_BITS: dict[Any, Any] = {types.float32: types.int32, types.float64: types.int64}
_FLOATS: dict[Any, Any] = {bits: float_type for float_type, bits in _BITS.items()}


def compiled(function: Function) -> Function:
    """Compile at the first call with each combination of dtypes; keep the code on disk.

    No flag that changes results is on: operations are IEEE's, each rounded by itself, never
    reordered or fused. Other threads run meanwhile. Without a writable folder nothing is kept.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False}
    try:
        made = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no place for the code that would be kept
        made = numba.njit(**options)(function)
    return cast(Function, made)


def declare(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - numba has no types
    """Make a function that kernels may call of one that writes LLVM's instructions."""
    return intrinsic(function)


def _flip(builder: Any, value: Any) -> Any:  # noqa: ANN401
    """Swap the order of negative numbers; its own inverse."""
    width = value.type.width
    sign = builder.ashr(value, value.type(width - 1))
    return builder.xor(value, builder.and_(sign, value.type((1 << (width - 1)) - 1)))


def _ordered(_context: Any, value: Any) -> Any:  # noqa: ANN401
    """An integer for each float, in the order of numbers; NaN beyond the infinities."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        target = context.get_value_type(signature.return_type)
        return _flip(builder, builder.bitcast(arguments[0], target))

    return _BITS[value](value), generate


def _unordered(_context: Any, value: Any) -> Any:  # noqa: ANN401
    """The float of such an integer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        target = context.get_value_type(signature.return_type)
        return builder.bitcast(_flip(builder, arguments[0]), target)

    return _FLOATS[value](value), generate


def _lesser(_context: Any, first: Any, second: Any) -> Any:  # noqa: ANN401
    """The lesser of two integers of one width."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:  # noqa: ANN401
        a, b = arguments
        return builder.select(builder.icmp_signed("<", a, b), a, b)

    return first(first, second), generate


def _greater(_context: Any, first: Any, second: Any) -> Any:  # noqa: ANN401
    """The greater of two integers of one width."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:  # noqa: ANN401
        a, b = arguments
        return builder.select(builder.icmp_signed(">", a, b), a, b)

    return first(first, second), generate


def _low_byte(_context: Any, value: Any) -> Any:  # noqa: ANN401
    """The low eight bits of a float's pattern."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:  # noqa: ANN401
        bits = builder.bitcast(arguments[0], context.get_value_type(_BITS[value]))
        return builder.trunc(bits, ir.IntType(8))

    return types.uint8(value), generate


def _as_float(_context: Any, value: Any, like: Any) -> Any:  # noqa: ANN401
    """A small integer as a float of the type of `like`; exact."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        target = context.get_value_type(signature.return_type)
        convert = builder.sitofp if value.signed else builder.uitofp
        return convert(arguments[0], target)

    return like(value, like), generate


def _bits(_context: Any, value: Any) -> Any:  # noqa: ANN401
    """The pattern of a float32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


def _from_bits(_context: Any, value: Any) -> Any:  # noqa: ANN401
    """The float32 of a pattern, of which the low 32 bits count."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:  # noqa: ANN401
        (pattern,) = arguments
        if pattern.type.width != 32:
            pattern = builder.trunc(pattern, ir.IntType(32))
        return builder.bitcast(pattern, ir.FloatType())

    return types.float32(value), generate


def _signed(_context: Any, value: Any) -> Any:  # noqa: ANN401
    """The low 32 bits of an integer, as an int32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:  # noqa: ANN401
        (given,) = arguments
        if given.type.width < 32:
            return builder.zext(given, ir.IntType(32))
        return given if given.type.width == 32 else builder.trunc(given, ir.IntType(32))

    return types.int32(value), generate


ordered = declare(_ordered)
signed = declare(_signed)
unordered = declare(_unordered)
lesser = declare(_lesser)
greater = declare(_greater)
low_byte = declare(_low_byte)
as_float = declare(_as_float)
bits = declare(_bits)
from_bits = declare(_from_bits)
