"""What a message is: a frozen dataclass with a number and a reader per field."""

from collections.abc import Callable
from typing import ClassVar, TypeVar


class Message:
    """Base of all messages. Subclasses are registered by `message(kind=...)`."""

    __slots__ = ()

    KIND: ClassVar[int]

    def problem(self) -> str | None:
        """Tell what only the whole message can show to be wrong, or None."""
        return None


MESSAGES: dict[int, type[Message]] = {}

M = TypeVar("M", bound=type[Message])


def message(kind: int) -> Callable[[M], M]:
    """Register a message class under its number. Numbers are appended, never reused."""

    def register(cls: M) -> M:
        assert kind not in MESSAGES or MESSAGES[kind].__qualname__ == cls.__qualname__, kind
        cls.KIND = kind
        MESSAGES[kind] = cls
        return cls

    return register
