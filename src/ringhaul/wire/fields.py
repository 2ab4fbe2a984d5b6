"""Readers: one untrusted value -> a typed, bounded value, or `WireError`.

A message class names one reader per field, as in `Annotated[Generation, uint]`. Records
(frozen dataclasses inside messages) are read by the same machinery.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from ringhaul.errors import WireError
from ringhaul.limits import ADDRESSES_MAX, NAME_LENGTH_MAX, TAG_LENGTH_MAX, TEXT_LENGTH_MAX

T = TypeVar("T")
Reader = Callable[[object], Any]

UINT_MAX = 2**63 - 1
#: Records of one class that are looked up instead of read again.
REPEATED_MAX = 64
#: More fields than any record has: it is refused whatever follows.
FIELDS_MAX = 32


def shown(value: object) -> str:
    """Show an untrusted value in a reason: briefly, and never what is nested in it.

    `repr` recurses, so that a list in a list, a thousand times over, would end it.
    """
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value[:60]) if isinstance(value, (str, bytes)) else repr(value)


def uint(value: object) -> int:
    """An integer from 0 to 2**63 - 1."""
    if type(value) is not int or not 0 <= value <= UINT_MAX:
        raise WireError(f"not an unsigned integer: {shown(value)}")
    return value


def uint_up_to(maximum: int) -> Reader:
    """Make a reader of integers from 0 to `maximum`."""

    def read(value: object) -> int:
        number = uint(value)
        if number > maximum:
            raise WireError(f"{number} is more than {maximum}")
        return number

    return read


def seconds(value: object) -> float:
    """A finite duration, 0 to 10 million seconds."""
    if type(value) not in (int, float) or not 0 <= value <= 1e7:  # type: ignore[operator]
        raise WireError(f"not a duration: {shown(value)}")
    return float(value)  # type: ignore[arg-type]


def boolean(value: object) -> bool:
    """True or false, not 0 or 1."""
    if type(value) is not bool:
        raise WireError(f"not a boolean: {shown(value)}")
    return value


def text_up_to(length: int) -> Reader:
    """Make a reader of strings of at most `length` characters."""

    def read(value: object) -> str:
        if type(value) is not str or len(value) > length:
            raise WireError(f"not a string of at most {length} characters: {shown(value)}")
        return value

    return read


text = text_up_to(TEXT_LENGTH_MAX)
name_text = text_up_to(NAME_LENGTH_MAX)
tag_text = text_up_to(TAG_LENGTH_MAX)


def blob(length: int) -> Reader:
    """Make a reader of byte strings of exactly `length` bytes."""

    def read(value: object) -> bytes:
        if type(value) is not bytes or len(value) != length:
            raise WireError(f"not {length} bytes: {shown(value)}")
        return value

    return read


def blob_up_to(length: int) -> Reader:
    """Make a reader of byte strings of at most `length` bytes."""

    def read(value: object) -> bytes:
        if type(value) is not bytes or len(value) > length:
            raise WireError(f"not at most {length} bytes: {shown(value)}")
        return value

    return read


#: Run ids, secrets, tokens and proofs.
token = blob(16)


_id_text = text_up_to(NAME_LENGTH_MAX + 16)


def peer_id(value: object) -> str:
    """A peer's id: printable, not empty."""
    read: str = _id_text(value)
    if not read or not read.isprintable():
        raise WireError(f"not a peer id: {shown(value)}")
    return read


def optional(reader: Reader) -> Reader:
    """Make a reader of what `reader` reads, or None."""

    def read(value: object) -> Any:  # noqa: ANN401 - whatever `reader` gives
        return None if value is None else reader(value)

    return read


def tuple_of(reader: Reader, *, max_len: int) -> Reader:
    """Make a reader of at most `max_len` values."""

    def read(value: object) -> tuple[Any, ...]:
        if type(value) is not list or len(value) > max_len:
            raise WireError(f"not a list of at most {max_len} values")
        return tuple(reader(item) for item in value)

    return read


def one_of(kind: type[enum.Enum]) -> Reader:
    """Make a reader of the values of an enumeration."""
    members = {member.value: member for member in kind}

    def read(value: object) -> enum.Enum:
        if type(value) not in (int, str) or value not in members:
            raise WireError(f"not a {kind.__name__}: {shown(value)}")
        return members[value]

    return read


class _Shape(NamedTuple):
    """A record class, taken apart once."""

    names: tuple[str, ...]
    readers: tuple[Reader, ...]
    problem: Callable[[Any], str | None] | None


@functools.cache
def _shape_of(record: type) -> _Shape:
    """The fields of a record class and their readers, in order."""
    hints = get_type_hints(record, include_extras=True)
    names, readers = [], []
    for field in dataclasses.fields(record):
        hint = hints[field.name]
        assert get_origin(hint) is not None, f"{record.__name__}.{field.name} has no reader"
        names.append(field.name)
        readers.append(get_args(hint)[1])
    return _Shape(tuple(names), tuple(readers), getattr(record, "problem", None))


def read_record(record: type[T], values: Sequence[object]) -> T:
    """Read the fields of `record`; then ask it for a problem that only the whole can tell."""
    names, readers, problem = _shape_of(record)  # type: ignore[arg-type]
    if len(values) != len(readers):
        raise WireError(f"{record.__name__} has {len(readers)} fields, not {len(values)}")
    fields: list[object] = []
    try:
        for reader, value in zip(readers, values, strict=True):
            fields.append(reader(value))
    except WireError as error:
        raise WireError(f"{record.__name__}.{names[len(fields)]}: {error}") from None
    read = record(**dict(zip(names, fields, strict=True)))
    if problem is not None and (text := problem(read)) is not None:
        raise WireError(f"{record.__name__}: {text}")
    return read


def record_of(record: type, *, repeats: bool = False) -> Reader:
    """Make a reader of a record inside a message.

    `repeats`: its fields are plain values, the same in message after message, and what was
    read lately is looked up.
    """

    def read_values(*values: Hashable) -> Any:  # noqa: ANN401 - an instance of `record`
        return read_record(record, values)

    look_up: Any = read_values
    if repeats:  # `typed`: 1 is no boolean, nor is True a number
        look_up = functools.lru_cache(maxsize=REPEATED_MAX, typed=True)(read_values)

    def read(value: object) -> Any:  # noqa: ANN401 - an instance of `record`
        if type(value) is not list:
            raise WireError(f"not a {record.__name__}: {shown(value)}")
        try:
            return look_up(*value[:FIELDS_MAX])
        except TypeError:  # what is nested has no hash
            return read_record(record, value)

    return read


@functools.cache
def _names_of(record: type) -> tuple[str, ...]:
    """The names of a record's fields, in order."""
    return tuple(field.name for field in dataclasses.fields(record))


def values_of(record: object) -> list[object]:
    """The fields of a record, in order; the inverse of `read_record` but for `plain`."""
    return [getattr(record, name) for name in _names_of(type(record))]  # type: ignore[arg-type]


def plain(value: object) -> object:
    """Turn what msgpack does not know into what it does: records and enumerations."""
    if isinstance(value, enum.Enum):
        return value.value
    return values_of(value)


address_host = text_up_to(255)
port = uint_up_to(65535)
addresses_max = ADDRESSES_MAX
