"""The state of a small world as one hashable value. Decides nothing.

Processes have a place, 0 and up. A machine's state is the number of its cell, a message that
of its name. All of it together is what an exploration prunes by.
"""

import enum
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ringhaul.core.peer.steps import View
from ringhaul.ids import CallId, Generation, LinkId, OpKey, PeerId
from ringhaul.wire.coordinator_messages import Outcome

T = TypeVar("T")
#: In a queue: the other end is closed; for who dialled: the connection is up, or will not be.
END, DIALLED, FAILED = -1, -2, -3
#: The machine of a process that has ended.
NO_CELL = -1


class Life(enum.IntEnum):
    """How a process is."""

    ABSENT = 0
    ALIVE = 1
    DEAD = 2  # its kernel told everybody
    VANISHED = 3  # its power failed: nobody is told
    STOPPED = 4  # by its own machine


class Attempt(NamedTuple):
    """A transfer around the ring: all parts of it have the same."""

    generation: Generation
    key: OpKey


class Call(NamedTuple):
    """A call of a program that has not ended. `key` is None for `admit`."""

    id: CallId
    key: OpKey | None
    attempt: Attempt | None = None
    #: Whose values are in the result, once it is whole.
    got: tuple[PeerId, ...] | None = None


class Ring(NamedTuple):
    """What a process was last told to make links for; places of its neighbours."""

    generation: Generation
    order: tuple[PeerId, ...]
    next: int | None
    previous: int | None


class Process(NamedTuple):
    """One process: its machine, its data links, its program."""

    cell: int
    id: PeerId = PeerId("")
    life: Life = Life.ABSENT
    is_dialling: bool = False
    dials: int = 0
    ring: Ring | None = None
    #: Its link to the next rank is being made.
    is_linking: bool = False
    #: Nothing else happened for so many seconds since it was told of the ring.
    waited: int = 0
    is_member: bool = False
    #: The generation that the last admission opened.
    era: Generation = Generation(0)
    #: Of its program: steps begun, calls made in all, and in this era by tag.
    steps: int = 0
    call_count: int = 0
    ordinals: tuple[tuple[str | None, int], ...] = ()
    calls: tuple[Call, ...] = ()


class Connection(NamedTuple):
    """A control connection: what is under way on it, and which ends know it as open."""

    link: LinkId
    place: int
    up: tuple[int, ...] = ()
    down: tuple[int, ...] = ()
    peer_open: bool = True
    coordinator_open: bool = True
    #: Nothing more gets into this direction.
    up_ended: bool = False
    down_ended: bool = False


class Notice(NamedTuple):
    """A process is about to find its link with another broken."""

    who: int
    pair: tuple[int, int]


class Ended(NamedTuple):
    """How a call ended on a member: the same on all."""

    era: Generation
    key: OpKey
    error: str | None
    view: View | None
    got: tuple[PeerId, ...] | None


class World(NamedTuple):
    """Everything that the future, and the oracles, depend on."""

    coordinator: int
    processes: tuple[Process, ...]
    connections: tuple[Connection, ...] = ()
    #: Data links that are up, by sender and receiver.
    links: frozenset[tuple[int, int]] = frozenset()
    notices: frozenset[Notice] = frozenset()
    #: Who has ever had a part in which attempt: its data may be out.
    posted: frozenset[tuple[Attempt, int]] = frozenset()
    #: The fault that was done, and to whom (a pair, or twice the same); None while there was none.
    fault: tuple[str, int, int] | None = None
    #: Seconds in which nothing but time has passed.
    waited: int = 0
    # what the oracles compare
    #: The generation that the last admission opened; verdicts since then.
    admitted: Generation = Generation(0)
    verdicts: frozenset[tuple[OpKey, Outcome]] = frozenset()
    #: How calls ended: era, key, how; as long as somebody has yet to hear of it.
    outcomes: frozenset[Ended] = frozenset()
    #: As Opened told of it; as long as somebody may be told yet.
    views: frozenset[View] = frozenset()


def kept_if(items: frozenset[T], is_kept: Callable[[T], bool]) -> frozenset[T]:
    """Those that pass; the same set if all do, so that it need not be looked up again."""
    if all(map(is_kept, items)):
        return items
    return frozenset(filter(is_kept, items))


class Violation(AssertionError):
    """The machines broke a promise."""
