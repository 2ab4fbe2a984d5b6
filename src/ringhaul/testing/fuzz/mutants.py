"""Mutants: input that is nearly right. Bits flipped, cut off, said twice, of another type.

Decides nothing about what must come of them.
"""

import random
import struct
from collections.abc import Callable
from typing import Any

import msgpack

_DEPTH_MAX = 400
#: Lengths that parsers like to trip over.
_LENGTHS = (0, 1, 2**15, 2**16 - 1, 2**20, 2**20 + 1, 2**31 - 1, 2**31, 2**32 - 1)


def odd_value(dice: random.Random) -> object:
    """Something that msgpack can carry and few fields can be."""
    nested: list[object] = []
    for _ in range(dice.randint(0, _DEPTH_MAX)):
        nested = [nested]
    return dice.choice([
        None, True, 0, 1, -1, 2**31, 2**63, 2**64 - 1, 0.5, -0.0, float("nan"), float("inf"),
        "", "x" * 2000, "\x00\n", b"", dice.randbytes(16), dice.randbytes(17), [], [[]], nested,
        ["a", "a"], [None, 0], [None, 2**32], ["t", -1], {}, {"a": 1}, ["host", 70000],
        [["host", 1]] * 17, "committed", "timeout", dice.randint(0, 50), ["a"] * 1025,
        msgpack.ExtType(5, b""), msgpack.Timestamp(1),
    ])  # fmt: skip


def replace_somewhere(value: Any, dice: random.Random) -> Any:  # noqa: ANN401
    """Put an odd value in place of one field, at any depth; or double, drop or swap fields."""
    if not (isinstance(value, list) and value and dice.random() < 0.8):
        return odd_value(dice)
    index = dice.randrange(len(value))
    match dice.randrange(8):
        case 0:
            return [*value[: index + 1], *value[index:]]
        case 1:
            return [*value[:index], *value[index + 1 :]]
        case 2:
            other = dice.randrange(len(value))
            swapped = list(value)
            swapped[index], swapped[other] = swapped[other], swapped[index]
            return swapped
        case _:
            return [*value[:index], replace_somewhere(value[index], dice), *value[index + 1 :]]


def mutated_message(data: bytes, dice: random.Random) -> bytes:
    """A mutant of a packed message: of its bytes, or of its values."""
    if dice.random() < 0.5:
        return mutated_bytes(data, dice)
    try:
        packed: bytes = msgpack.packb(replace_somewhere(msgpack.unpackb(data), dice))
    except (ValueError, TypeError):  # a mutant of a mutant
        return mutated_bytes(data, dice)
    return packed


def mutated_bytes(data: bytes, dice: random.Random) -> bytes:
    """A mutant of any bytes."""
    return dice.choice(_CHANGES)(data, dice)


def _flip(data: bytes, dice: random.Random) -> bytes:
    if not data:
        return b"\x00"
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))] if data else data


def _extend(data: bytes, dice: random.Random) -> bytes:
    return data + dice.randbytes(dice.randint(1, 9))


def _insert(data: bytes, dice: random.Random) -> bytes:
    at = dice.randint(0, len(data))
    return data[:at] + dice.randbytes(dice.randint(1, 3)) + data[at:]


def _double(data: bytes, dice: random.Random) -> bytes:
    """Say a part twice."""
    start, stop = sorted(dice.randint(0, len(data)) for _ in range(2))
    return data[:stop] + data[start:stop] + data[stop:]


def _drop(data: bytes, dice: random.Random) -> bytes:
    start, stop = sorted(dice.randint(0, len(data)) for _ in range(2))
    return data[:start] + data[stop:]


def _lengthen(data: bytes, dice: random.Random) -> bytes:
    """Put a length that is not true over four bytes."""
    at = dice.randint(0, max(0, len(data) - 4))
    return data[:at] + struct.pack("!I", dice.choice(_LENGTHS)) + data[at + 4 :]


def _overwrite(data: bytes, dice: random.Random) -> bytes:
    at = dice.randint(0, len(data))
    count = dice.randint(1, 16)
    return data[:at] + dice.randbytes(count) + data[at + count :]


_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _flip, _truncate, _extend, _insert, _double, _drop, _lengthen, _overwrite,
)  # fmt: skip
