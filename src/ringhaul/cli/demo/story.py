"""What happened in a demo, in order: facts from the workers and deeds of the orchestrator.

Only collects; `summary.py` draws the conclusions, `view.py` shows it while it grows.
"""

from dataclasses import dataclass

from ringhaul.cli.demo.events import Connected, Evaluated, Event, Finished, RoundDone


@dataclass(frozen=True, slots=True)
class Note:
    """A line of the timeline, seconds from the beginning of training."""

    at_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Deed:
    """Something the orchestrator did to a peer, at seconds since the Unix epoch."""

    peer: str
    at: float


class Story:
    """The ring's part of a demo. Instants are seconds since the Unix epoch."""

    def __init__(self, begin_at: float, end_at: float) -> None:
        self.begin_at = begin_at
        self.end_at = end_at
        self.notes: list[Note] = []
        self.problems: list[str] = []
        self.connected: dict[str, Connected] = {}
        self.finished: dict[str, Finished] = {}
        self.evaluated: Evaluated | None = None
        #: Rounds as each peer saw them, by the peer's name.
        self.rounds: dict[str, list[RoundDone]] = {}
        #: The first report of each round.
        self.committed: list[RoundDone] = []
        self.killed: Deed | None = None
        self.joined: Deed | None = None
        self._names: dict[str, str] = {}

    @property
    def latest(self) -> RoundDone | None:
        """The newest round that anybody reported."""
        return self.committed[-1] if self.committed else None

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Training loss by time: seconds from the beginning, bits per byte."""
        return [(r.at - self.begin_at, r.train_bits_per_byte) for r in self.committed]

    @property
    def timeline(self) -> list[Note]:
        """The notes by time; they came in the order of the reports."""
        return sorted(self.notes, key=lambda note: note.at_s)

    def name_of(self, peer_id: str) -> str:
        """The short name behind a peer id."""
        return self._names.get(peer_id, peer_id)

    def id_of(self, peer: str) -> str | None:
        """The peer id behind a name, once it was a member."""
        connected = self.connected.get(peer)
        return None if connected is None else connected.peer_id

    def note(self, at: float, text: str) -> None:
        """Add a line to the timeline."""
        self.notes.append(Note(at - self.begin_at, text))

    def on_killed(self, peer: str, at: float) -> None:
        """The orchestrator sent SIGKILL."""
        self.killed = Deed(peer, at)
        self.note(at, f"{peer} is killed (SIGKILL)")

    def on_joined(self, peer: str, at: float) -> None:
        """The orchestrator started a peer in the middle of the run."""
        self.joined = Deed(peer, at)
        self.note(at, f"{peer} is started")

    def on_problem(self, at: float, text: str) -> None:
        """Something that should not have happened."""
        self.problems.append(text)
        self.note(at, text)

    def on_event(self, event: Event) -> None:
        """Take what a worker reported."""
        match event:
            case Connected():
                self.connected[event.peer] = event
                self._names[event.peer_id] = event.peer
                where = f"rank {event.rank} of {event.world_size}"
                self.note(
                    event.at, f"{event.peer} is a member: {where}, generation {event.generation}"
                )
            case RoundDone():
                self._on_round(event)
            case Finished():
                self.finished[event.peer] = event
                self.note(event.at, f"{event.peer} has finished after round {event.rounds}")
            case Evaluated():
                self.evaluated = event

    def _on_round(self, done: RoundDone) -> None:
        """Keep it; say so if it is the first of its number and its ring is a new one."""
        self.rounds.setdefault(done.peer, []).append(done)
        before = self.latest
        if before is not None and done.round <= before.round:
            return
        self.committed.append(done)
        if before is None or before.contributors != done.contributors:
            ring = " > ".join(self.name_of(peer_id) for peer_id in done.contributors)
            again = f", {done.attempts} attempts" if done.attempts > 1 else ""
            self.note(done.at, f"round {done.round} is committed by {ring}{again}")
