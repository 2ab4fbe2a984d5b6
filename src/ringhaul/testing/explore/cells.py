"""States of machines, each kept once, and the steps between them, each made once.

A cell is the number of a machine's state. What a machine does in a cell on an event is
looked up the second time: the whole has far more states than its parts.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, cast

from ringhaul.testing.explore.facts import copied, freeze

Event = TypeVar("Event", contravariant=True)
Op = TypeVar("Op")
T = TypeVar("T", bound=Hashable)


class Machine(Protocol[Event]):
    """What is pure: `step` and nothing else."""

    def step(self, event: Event, now: float) -> list[Any]:
        """Take an event."""


M = TypeVar("M", bound=Machine)  # type: ignore[type-arg]


class Names(Generic[T]):
    """Gives each different value a number, from 0."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self._numbers: dict[T, int] = {}

    def number(self, value: T) -> int:
        """The number of this value, always the same."""
        known = self._numbers.get(value)
        if known is None:
            known = self._numbers[value] = len(self.values)
            self.values.append(value)
        return known


@dataclass(slots=True)
class _Kept(Generic[M]):
    machine: M
    now: float


@dataclass(slots=True)
class Cells(Generic[M, Op]):
    """All states that machines of one kind were found in.

    `told` makes of a step's effects what the world does about them.
    """

    told: Callable[[list[Any]], tuple[Op, ...]]
    _kept: list[_Kept[M]] = field(default_factory=list)
    _numbers: dict[Hashable, int] = field(default_factory=dict)
    _steps: dict[tuple[int, int], tuple[int, tuple[Op, ...]]] = field(default_factory=dict)
    _events: Names[Hashable] = field(default_factory=Names)

    def put(self, machine: M, now: float) -> int:
        """The cell of a machine, whose clock is `now`. The machine is not touched any more."""
        facts = freeze(machine, now)
        known = self._numbers.get(facts)
        if known is None:
            known = self._numbers[facts] = len(self._kept)
            self._kept.append(_Kept(machine, now))
        return known

    def machine(self, cell: int) -> M:
        """The machine as it stands there. Only to be looked at."""
        return self._kept[cell].machine

    def event(self, event: Hashable) -> int:
        """The number of an event."""
        return self._events.number(event)

    def step(self, cell: int, event: int, passed_s: float = 0.0) -> tuple[int, tuple[Op, ...]]:
        """What the machine becomes and does on an event; its clock goes on by so much."""
        place = (cell, event)
        known = self._steps.get(place)
        if known is None:
            kept = self._kept[cell]
            machine = cast("M", copied(kept.machine, {}))
            now = kept.now + passed_s
            effects = machine.step(self._events.values[event], now)
            known = self._steps[place] = (self.put(machine, now), self.told(effects))
        return known

    def __len__(self) -> int:
        """How many there are."""
        return len(self._kept)

    @property
    def step_count(self) -> int:
        """How many different steps were made."""
        return len(self._steps)
