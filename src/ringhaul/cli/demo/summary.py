"""What a demo showed: the loss, the recovery, and whether all peers hold the same bits."""

import itertools
import statistics
from dataclasses import asdict, dataclass

from ringhaul.cli.demo.events import Finished, RoundDone
from ringhaul.cli.demo.options import DemoOptions
from ringhaul.cli.demo.story import Note, Story

#: Rounds before a kill that say what is usual.
USUAL_ROUNDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardsticks:
    """What the ring's result is compared with, on the same held-out bytes."""

    held_out_bytes: int
    held_out_files: int
    #: Of this machine: fewer than peers slow each peer down, but not the process alone.
    core_count: int
    #: Bits per byte of the parameters that training began with.
    before: float
    #: Of one process given the same time; None if it failed.
    alone: float | None
    alone_steps: int
    gzip: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """A kill, and the first committed round without the victim, on the slowest survivor."""

    peer: str
    killed_at_s: float
    recovery_s: float
    #: Median time between two rounds before the kill.
    usual_round_s: float
    #: Of the survivors' all-reduce that noticed the loss, beyond the usual one.
    reduce_excess_s: float
    attempts: int

    @property
    def reduce_text(self) -> str:
        """How long the all-reduce took, in words."""
        excess_ms = round(self.reduce_excess_s * 1e3)
        return f"{excess_ms} ms more than usual" if excess_ms > 0 else "no longer than usual"


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """A peer that came in the middle of the run."""

    peer: str
    started_at_s: float
    #: From the start of its process until it held the state.
    member_s: float
    #: From then to the first round it contributed to.
    first_round_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """All numbers of a demo. `problems` is empty if and only if it went well."""

    options: DemoOptions
    yardsticks: Yardsticks
    #: Bits per byte of the final parameters on all held-out text.
    after: float | None
    #: How long the ring trained, and the process alone: longer than planned on a busy machine.
    trained_s: float
    rounds: int
    steps: int
    recovery: Recovery | None
    join: Join | None
    digests: dict[str, str]
    timeline: list[Note]
    problems: list[str]

    @property
    def is_identical(self) -> bool:
        """Do all peers that finished hold the same parameters, bit for bit?"""
        return len(set(self.digests.values())) == 1

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "ok": not self.problems,
            "problems": self.problems,
            "options": asdict(self.options),
            "bits_per_byte": {
                "before": self.yardsticks.before,
                "after": self.after,
                "alone": self.yardsticks.alone,
                "gzip": self.yardsticks.gzip,
            },
            "held_out_bytes": self.yardsticks.held_out_bytes,
            "cores": self.yardsticks.core_count,
            "trained_s": self.trained_s,
            "rounds": self.rounds,
            "steps": self.steps,
            "alone_steps": self.yardsticks.alone_steps,
            "recovery": None if self.recovery is None else asdict(self.recovery),
            "join": None if self.join is None else asdict(self.join),
            "identical": self.is_identical,
            "digests": self.digests,
            "timeline": [asdict(note) for note in self.timeline],
        }

    def as_text(self) -> str:
        """For people."""
        lines = [*self._loss_lines(), "", *self._membership_lines(), "", "timeline"]
        lines += [f"  {note.at_s:6.2f} s  {note.text}" for note in self.timeline]
        if self.problems:
            lines += ["", "NOT as it should be:", *(f"  {problem}" for problem in self.problems)]
        return "\n".join(lines)

    def _loss_lines(self) -> list[str]:
        marks = self.yardsticks
        seconds = f"{self.trained_s:.0f} s"
        codec = "" if self.options.codec == "raw" else f" {self.options.codec},"
        rows = (
            ("before training", marks.before),
            (f"ring of {self.options.peers},{codec} {seconds}, {self.steps:,} steps", self.after),
            (f"one process, {seconds}, {marks.alone_steps:,} steps", marks.alone),
            ("gzip -9", marks.gzip),
        )
        return [
            f"bits per byte on {marks.held_out_bytes:,} held-out bytes of Python's library, "
            f"{marks.core_count} cores",
            *(
                f"  {label:<36} " + ("failed" if bits is None else f"{bits:6.3f}")
                for label, bits in rows
            ),
        ]

    def _membership_lines(self) -> list[str]:
        lines = [f"{self.rounds} rounds were committed"]
        if self.recovery is not None:
            found = self.recovery
            lines.append(
                f"{found.peer} was killed at {found.killed_at_s:.2f} s: the others' next round was "
                f"committed {found.recovery_s:.3f} s later (usual: a round every "
                f"{found.usual_round_s:.3f} s); its all-reduce took {found.reduce_text}, "
                f"attempts: {found.attempts}"
            )
        if self.join is not None:
            lines.append(
                f"{self.join.peer} was started at {self.join.started_at_s:.2f} s: a member with "
                f"the state after {self.join.member_s:.2f} s (its interpreter's start included), "
                f"in a committed round {self.join.first_round_s:.2f} s after that"
            )
        same = "the same bits" if self.is_identical else "DIFFERENT parameters"
        lines.append(f"{len(self.digests)} peers finished with {same}")
        lines += [f"  {peer}  {digest}" for peer, digest in sorted(self.digests.items())]
        return lines


def summarize(options: DemoOptions, story: Story, yardsticks: Yardsticks) -> Summary:
    """Draw the conclusions."""
    after = None if story.evaluated is None else story.evaluated.bits_per_byte
    recovery, join = _recovery(story), _join(story)
    digests = {peer: finished.digest for peer, finished in story.finished.items()}
    return Summary(
        options=options,
        yardsticks=yardsticks,
        after=after,
        trained_s=story.end_at - story.begin_at,
        rounds=0 if story.latest is None else story.latest.round,
        steps=sum(finished.steps for finished in story.finished.values()),
        recovery=recovery,
        join=join,
        digests=digests,
        timeline=story.timeline,
        problems=[
            *story.problems,
            *_loss_problems(after, yardsticks),
            *_membership_problems(options, story, recovery, join),
            *_digest_problems(story.finished),
        ],
    )


def _loss_problems(after: float | None, yardsticks: Yardsticks) -> list[str]:
    if after is None:
        return ["nobody judged the final parameters"]
    if not after < yardsticks.before:
        return [f"the loss did not fall: {yardsticks.before:.3f} before, {after:.3f} after"]
    return [] if yardsticks.alone is not None else ["the process alone did not finish"]


def _membership_problems(
    options: DemoOptions, story: Story, recovery: Recovery | None, join: Join | None
) -> list[str]:
    problems: list[str] = []
    if options.kill and recovery is None:
        problems.append("no round was committed after a kill")
    if join is None:
        problems.append("no peer joined in the middle and took part in a round")
    killed = set() if story.killed is None else {story.killed.peer}
    missing = sorted(set(story.connected) - set(story.finished) - killed)
    if missing or not story.finished:
        problems.append(f"did not finish: {', '.join(missing) or 'all'}")
    return problems


def _digest_problems(finished: dict[str, Finished]) -> list[str]:
    by_digest: dict[str, list[str]] = {}
    for peer, end in sorted(finished.items()):
        by_digest.setdefault(end.digest, []).append(peer)
    if len(by_digest) <= 1:
        return []
    groups = "; ".join(f"{digest[:8]}: {', '.join(p)}" for digest, p in by_digest.items())
    return [f"the peers' parameters differ: {groups}"]


def _recovery(story: Story) -> Recovery | None:
    """From the kill to the first round without the victim, on the slowest survivor."""
    if story.killed is None:
        return None
    killed_at, victim = story.killed.at, story.id_of(story.killed.peer)
    slowest: Recovery | None = None
    for peer, rounds in story.rounds.items():
        if peer == story.killed.peer:
            continue
        before = [r for r in rounds if r.at <= killed_at][-USUAL_ROUNDS:]
        after = next((r for r in rounds if r.at > killed_at and victim not in r.contributors), None)
        if after is None or len(before) < 2:
            continue
        found = Recovery(
            peer=story.killed.peer,
            killed_at_s=killed_at - story.begin_at,
            recovery_s=after.at - killed_at,
            usual_round_s=_usual_round_s(before),
            reduce_excess_s=after.reduce_s - statistics.median(r.reduce_s for r in before),
            attempts=after.attempts,
        )
        if slowest is None or found.recovery_s > slowest.recovery_s:
            slowest = found
    return slowest


def _usual_round_s(rounds: list[RoundDone]) -> float:
    """Median time from one round to the next; two rounds at least."""
    instants = [r.at for r in rounds]
    return statistics.median(b - a for a, b in itertools.pairwise(instants))


def _join(story: Story) -> Join | None:
    """How long the peer that came later took, if it took part at all."""
    if story.joined is None:
        return None
    connected = story.connected.get(story.joined.peer)
    rounds = story.rounds.get(story.joined.peer)
    if connected is None or not rounds:
        return None
    return Join(
        peer=story.joined.peer,
        started_at_s=story.joined.at - story.begin_at,
        member_s=connected.at - story.joined.at,
        first_round_s=rounds[0].at - connected.at,
    )
