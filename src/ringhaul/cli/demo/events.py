"""What the demo's processes tell the orchestrator: one JSON object a line on stdout."""

from dataclasses import dataclass

from ringhaul.cli.events import EventLines


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The process became a member, and has the parameters of the run."""

    peer: str
    #: Seconds since the Unix epoch, as all `at` of this page: one machine, one clock.
    at: float
    peer_id: str
    generation: int
    rank: int
    world_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundDone:
    """A round is committed and its outer step made, as this peer saw it."""

    peer: str
    at: float
    round: int
    #: Generation, rank and world size after the round's admission.
    generation: int
    rank: int
    world_size: int
    #: Peer ids in ring order whose pseudo-gradients were averaged.
    contributors: list[str]
    attempts: int
    #: Seconds in the all-reduce, waiting for late members included.
    reduce_s: float
    #: Mean over this peer's inner steps of the round.
    train_bits_per_byte: float
    #: On a short sample; by rank 0 every few rounds, else null.
    sample_bits_per_byte: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The process stops training, together with all others."""

    peer: str
    at: float
    steps: int
    rounds: int
    rank: int
    #: BLAKE2b of all parameters, by name.
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The final parameters, judged on all held-out text."""

    peer: str
    at: float
    bits_per_byte: float


Event = Connected | RoundDone | Finished | Evaluated

_LINES: EventLines[Event] = EventLines(
    {
        "connected": Connected,
        "round": RoundDone,
        "finished": Finished,
        "evaluated": Evaluated,
    }
)
encode = _LINES.encode
decode = _LINES.decode
