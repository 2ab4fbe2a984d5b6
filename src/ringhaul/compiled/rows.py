"""Kernels on rows of 64 values, in LLVM's vectors: what loops over elements cannot say.

A comparison of 64 values becomes the 64 bits of an integer, and 64 values are sorted without a
branch; LLVM makes of a vector what the CPU has. Needs numba (the extra "fast").
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from ringhaul.compiled.primitives import declare

#: Values in a row: one bit each in a 64-bit integer.
ROW = 64
#: Rows that `fold_rows` takes at once.
FOLDED_ROWS = 8
#: Values that are folded at a time, so that what is needed stays in registers.
_PART = 16
#: 1.5 * 2**23 and 1.5 * 2**52 (see `Arithmetic.rounder`) as integers.
_ROUNDERS = {32: 0x4B400000, 64: 0x4338000000000000}

_LANES = ir.VectorType(ir.IntType(32), 8)

Generator = Callable[..., Any]


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any, length: int) -> Any:  # noqa: ANN401
    """A pointer to a vector of `length` elements of an array, from `index` on."""
    proxy: Any = cgutils.create_struct_proxy
    data = proxy(kind)(context, builder, value=array).data
    element = context.get_value_type(kind.dtype)
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(element, length).as_pointer())


def _bytes_of(kind: Any) -> int:  # noqa: ANN401
    return int(kind.dtype.bitwidth) // 8


def _splat(builder: Any, value: Any, length: int) -> Any:  # noqa: ANN401
    """A vector of one value."""
    single = builder.insert_element(
        ir.Constant(ir.VectorType(value.type, length), ir.Undefined), value, ir.IntType(32)(0)
    )
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), length), [0] * length)
    return builder.shuffle_vector(single, single, zeros)


def _pick(builder: Any, sign: str, first: Any, second: Any) -> Any:  # noqa: ANN401
    """The lesser ("<") or greater (">") of each two; the second, if one is not a number."""
    return builder.select(builder.fcmp_ordered(sign, first, second), first, second)


def _fold(row_count: int) -> Generator:
    def fold(_context: Any, values: Any, start: Any, low: Any, high: Any) -> Any:  # noqa: ANN401
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
            kinds, size = signature.args, _bytes_of(values)
            for part in range(0, ROW, _PART):
                offset = ir.IntType(64)(part)
                targets = [
                    _place(context, builder, kinds[which], arguments[which], offset, _PART)
                    for which in (2, 3)
                ]
                least, most = (builder.load(target, align=size) for target in targets)
                for row in range(row_count):
                    index = builder.add(arguments[1], ir.IntType(64)(row * ROW + part))
                    place = _place(context, builder, kinds[0], arguments[0], index, _PART)
                    found = builder.load(place, align=size)
                    least = _pick(builder, "<", found, least)
                    most = _pick(builder, ">", found, most)
                builder.store(least, targets[0], align=size)
                builder.store(most, targets[1], align=size)
            return context.get_dummy_value()

        return types.void(values, start, low, high), generate

    return fold


def _sort(_context: Any, values: Any) -> Any:  # noqa: ANN401
    """Sort 64 values in place, in the order of `rank_place`: a bitonic network.

    Value number i of the network is lane i // 8 of vector i % 8: most of its steps then order whole
    vectors, without moving values across lanes.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        places = [
            _place(context, builder, signature.args[0], arguments[0], ir.IntType(64)(8 * i), 8)
            for i in range(8)
        ]
        rows = [builder.load(place, align=_bytes_of(values)) for place in places]
        for length in (2, 4, 8, 16, 32, 64):
            distance = length // 2
            while distance:
                if distance < 8:
                    _order_vectors(builder, rows, length, distance)
                else:
                    _order_lanes(builder, rows, length // 8, distance // 8)
                distance //= 2
        for place, row in zip(places, rows, strict=True):
            builder.store(row, place, align=_bytes_of(values))
        return context.get_dummy_value()

    return types.void(values), generate


def _order_vectors(builder: Any, rows: list[Any], length: int, distance: int) -> None:  # noqa: ANN401
    """One step between vectors; from `length` 8 on the direction differs from lane to lane."""
    for i in range(8):
        if i & distance:
            continue
        first, second = rows[i], rows[i + distance]
        low, high = _pick(builder, "<", first, second), _pick(builder, ">", first, second)
        if length < 8:
            rows[i], rows[i + distance] = (high, low) if i & length else (low, high)
        else:
            up = [not lane & (length // 8) for lane in range(8)]
            rows[i] = _blend(builder, low, high, up)
            rows[i + distance] = _blend(builder, high, low, up)


def _order_lanes(builder: Any, rows: list[Any], length: int, distance: int) -> None:  # noqa: ANN401
    """One step between the lanes of each vector; lengths are in lanes."""
    swapped = ir.Constant(_LANES, [lane ^ distance for lane in range(8)])
    up = [(not lane & distance) == (not lane & length) for lane in range(8)]
    for i in range(8):
        other = builder.shuffle_vector(rows[i], rows[i], swapped)
        low, high = _pick(builder, "<", rows[i], other), _pick(builder, ">", rows[i], other)
        rows[i] = _blend(builder, low, high, up)


def _blend(builder: Any, first: Any, second: Any, which: list[bool]) -> Any:  # noqa: ANN401
    """The lanes of the first vector where `which` says so, else of the second."""
    mask = ir.Constant(_LANES, [lane if which[lane] else lane + 8 for lane in range(8)])
    return builder.shuffle_vector(first, second, mask)


def _encode(
    _context: Any,  # noqa: ANN401
    values: Any,  # noqa: ANN401
    start: Any,  # noqa: ANN401
    anchor: Any,  # noqa: ANN401
    inverse: Any,  # noqa: ANN401
    shift: Any,  # noqa: ANN401
    code_max: Any,  # noqa: ANN401
    codes: Any,  # noqa: ANN401
    at: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Write the codes of 64 values; the bits of the result are those that have none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        width = int(values.dtype.bitwidth)
        integer = ir.IntType(width)
        vector = ir.VectorType(integer, ROW)
        origin, factor, rounder = (_splat(builder, arguments[i], ROW) for i in (2, 3, 4))
        limit = arguments[5]
        if limit.type.width != width:
            limit = builder.trunc(limit, integer)
        low_bits = _splat(builder, builder.trunc(limit, ir.IntType(8)), ROW)
        place = _place(context, builder, values, arguments[0], arguments[1], ROW)
        row = builder.load(place, align=width // 8)
        row = builder.fadd(builder.fmul(builder.fsub(row, origin), factor), rounder)
        base = ir.Constant(vector, [_ROUNDERS[width]] * ROW)
        index = builder.sub(builder.bitcast(row, vector), base)
        code = builder.and_(builder.trunc(index, ir.VectorType(ir.IntType(8), ROW)), low_bits)
        place = _place(context, builder, codes, arguments[6], arguments[7], ROW)
        builder.store(code, place, align=1)
        beyond = builder.icmp_unsigned(">", index, _splat(builder, limit, ROW))
        return builder.bitcast(beyond, ir.IntType(ROW))

    signature = types.uint64(values, start, anchor, inverse, shift, code_max, codes, at)
    return signature, generate


def _trailing_zeros(_context: Any, word: Any) -> Any:  # noqa: ANN401
    """The index of the lowest bit that is set; 64 if none is."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.cttz(arguments[0], ir.IntType(1)(0))

    return types.int64(word), generate


def _bit_count(_context: Any, word: Any) -> Any:  # noqa: ANN401
    """How many bits are set."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:  # noqa: ANN401
        return builder.ctpop(arguments[0])

    return types.int64(word), generate


def _steps(_context: Any, value: Any) -> Any:  # noqa: ANN401
    """The integer that a number plus the rounder stands for; huge for what is no number."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:  # noqa: ANN401
        width = int(value.bitwidth)
        integer = builder.bitcast(arguments[0], ir.IntType(width))
        found = builder.sub(integer, ir.IntType(width)(_ROUNDERS[width]))
        return found if width == 64 else builder.sext(found, ir.IntType(64))

    return types.int64(value), generate


def _sign(_context: Any, value: Any) -> Any:  # noqa: ANN401
    """1 if a number is negative, else 0; never a branch."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:  # noqa: ANN401
        width = int(value.bitwidth)
        integer = builder.bitcast(arguments[0], ir.IntType(width))
        found = builder.lshr(integer, ir.IntType(width)(width - 1))
        return found if width == 64 else builder.zext(found, ir.IntType(64))

    return types.int64(value), generate


fold_row = declare(_fold(1))
fold_rows = declare(_fold(FOLDED_ROWS))
sort_row = declare(_sort)
encode_row = declare(_encode)
trailing_zeros = declare(_trailing_zeros)
bit_count = declare(_bit_count)
steps = declare(_steps)
sign = declare(_sign)
