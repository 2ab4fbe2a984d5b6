"""What the peers of a churn test report: facts, which the orchestrator judges.

Instants are of the machine's monotonic clock, which all its processes share.
"""

from dataclasses import dataclass

from ringhaul.cli.events import EventLines


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The process has imported all it needs and waits for the word to connect."""

    peer: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """`connect` returned: the peer is a member."""

    peer: str
    at: float
    peer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """An `admit` returned."""

    peer: str
    at: float
    began_at: float
    generation: int
    ring_order: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Synced:
    """A `sync_state` returned."""

    peer: str
    at: float
    began_at: float
    generation: int
    revision: int
    #: Of all bytes of the state.
    digest: str
    #: The ring order that it was committed in.
    contributors: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """A collective was committed, as this peer saw it."""

    peer: str
    at: float
    began_at: float
    #: Which operation of the program.
    round: int
    index: int
    kind: str
    #: As shown after the call; None where other operations were in flight.
    generation: int | None
    #: Peer ids in ring order.
    contributors: list[str]
    #: Of a broadcast.
    root: str | None
    attempts: int
    #: Calls that raised `CollectiveAborted` before this one.
    aborts: int
    #: Of the result's bytes.
    digest: str
    #: In which elements this peer found the result, or its own input, wrong.
    wrong: str | None
    #: Of a lossy codec: the largest error; else 0.
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The peer takes no part any more; `why` is "left" or the name of an exception."""

    peer: str
    at: float
    began_at: float
    why: str
    text: str


Fact = Ready | Joined | Admitted | Synced | Called | Ended
#: Facts that a call has returned or raised.
Return = Admitted | Synced | Called | Ended

LINES: EventLines[Fact] = EventLines(
    {
        "ready": Ready,
        "joined": Joined,
        "admitted": Admitted,
        "synced": Synced,
        "called": Called,
        "ended": Ended,
    }
)
