"""Makes valid messages of every kind from the readers' own bounds."""

import dataclasses
import enum
import functools
import random
import types
from collections.abc import Callable, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

from ringhaul.errors import WireError
from ringhaul.ids import OpKey
from ringhaul.limits import PROTOCOL_VERSION, TAG_LENGTH_MAX
from ringhaul.wire.codec import Envelope
from ringhaul.wire.fields import UINT_MAX
from ringhaul.wire.message import Message

Reader = Callable[[object], Any]

_ALPHABET = "aZ0-_ .é漢😀"
_TEXT_LENGTH = 1 << 14
_ATTEMPTS_MAX = 10_000


class Maker:
    """Makes valid values from a field's type; its reader, asked, tells the bounds.

    Args:
        dice: the only source of chance.
        names: what peers, and other items of lists, are called.
        small: integers from 0 to this instead of all that are valid: for messages that fit
            a conversation.
    """

    def __init__(
        self,
        dice: random.Random,
        *,
        names: Sequence[str] = ("a", "b", "peer-é", "d" * 80),
        small: int | None = None,
    ) -> None:
        self.dice = dice
        self._names = names
        self._small = small

    def envelope(self, kind: type[Message]) -> Envelope:
        """A message of this kind, in an envelope."""
        return Envelope(
            message=self.record(kind),
            run_id=self.dice.randbytes(16),
            incarnation=self.integer(UINT_MAX),
            seq=self.integer(UINT_MAX),
            ack=self.integer(UINT_MAX),
        )

    def record(self, kind: type[Any]) -> Any:  # noqa: ANN401 - an instance of `kind`
        """A message or record in which its own check finds no problem."""
        hints = _hints_of(kind)  # type: ignore[arg-type]
        for _ in range(_ATTEMPTS_MAX):
            fields = {f.name: self._field(hints[f.name], f.name) for f in dataclasses.fields(kind)}
            made = kind(**fields)
            if getattr(made, "problem", lambda: None)() is None:
                return made
        raise AssertionError(f"no valid {kind.__name__} was made")

    def _field(self, hint: Any, name: str) -> Any:  # noqa: ANN401
        if name == "version":
            return PROTOCOL_VERSION
        kind, reader = get_args(hint)[:2]
        return self._value(kind, reader)

    def _value(self, kind: Any, reader: Reader) -> Any:  # noqa: ANN401
        kind = getattr(kind, "__supertype__", kind)
        if isinstance(kind, types.UnionType) or get_origin(kind) is Union:  # of a NewType
            inner = next(part for part in get_args(kind) if part is not types.NoneType)
            return None if self.dice.random() < 0.4 else self._value(inner, reader)
        if get_origin(kind) is tuple:
            return self._items(get_args(kind)[0])
        if kind is OpKey:
            longest = "t" * (TAG_LENGTH_MAX if self._small is None else 1)
            return OpKey(self.dice.choice([None, "", longest]), self.integer(2**32 - 1))
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            return self.record(kind)
        if issubclass(kind, enum.Enum):
            return self.dice.choice(list(kind))
        return self._scalar(kind, reader)

    def _items(self, kind: Any) -> tuple[Any, ...]:  # noqa: ANN401
        count = self.dice.choice([0, 1, 1, 2, 3])
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            return tuple(self.record(kind) for _ in range(count))
        return tuple(self.dice.sample(self._names, min(count, len(self._names))))

    def _scalar(self, kind: type, reader: Reader) -> Any:  # noqa: ANN401
        if kind is bool:
            return self.dice.random() < 0.5
        if kind is int:
            return self.integer(largest_number(reader))
        if kind is float:
            return self.dice.choice([0.0, 1e-9, 0.25, 1e7])
        if kind is str:
            return self._text(reader)
        assert kind is bytes, kind
        return self.dice.randbytes(16)

    def _text(self, reader: Reader) -> str:
        if self._small is not None and self.dice.random() < 0.8:
            return self.dice.choice(self._names)
        length = self.integer(longest_text(reader))
        made = "".join(self.dice.choices(_ALPHABET, k=length))
        return made or ("" if accepts(reader, "") else "x")

    def integer(self, maximum: int) -> int:
        """From 0 to `maximum`, often at an end."""
        if self._small is not None:
            return self.dice.randint(0, min(self._small, maximum))
        return self.dice.choice([0, 1, maximum - 1, maximum, self.dice.randint(0, maximum)])


@functools.cache
def _hints_of(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def accepts(reader: Reader, value: object) -> bool:
    """Does the reader take this value?"""
    try:
        reader(value)
    except WireError:
        return False
    return True


@functools.cache
def largest_number(reader: Reader) -> int:
    """The greatest integer that the reader takes."""
    return _largest(reader, lambda number: number, UINT_MAX)


@functools.cache
def longest_text(reader: Reader) -> int:
    """The length of the longest string that the reader takes."""
    return _largest(reader, lambda length: "x" * length, _TEXT_LENGTH)


def _largest(reader: Reader, make: Callable[[int], object], ceiling: int) -> int:
    """The greatest number whose value the reader takes, found by halving."""
    low, high = 1, ceiling
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if accepts(reader, make(middle)) else (low, middle - 1)
    return low
