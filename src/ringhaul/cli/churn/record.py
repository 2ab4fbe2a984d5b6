"""What happened in a churn test, as numbers: calls, faults, and how long recoveries took.

Only collects; `checker.py` judges, `report.py` tells.
"""

import statistics
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ringhaul.cli.churn.facts import Called, Return, Synced
from ringhaul.cli.churn.faults import Deed

#: Deeds that may lengthen a recovery from another.
_DISTURBING = frozenset({"kill", "stop", "cut", "coordinator", "leave"})
#: Durations of calls that are kept, for their median.
_DURATIONS_MAX = 100_000
_DEEDS_KEPT_MAX = 1000


@dataclass(slots=True)
class _Awaited:
    """A loss, and the survivors that have not returned from a call without the lost one."""

    deed: Deed
    waiting: set[str]
    last_at: float = 0.0
    is_disturbed: bool = False


@dataclass(frozen=True, slots=True)
class Spread:
    """Durations in seconds."""

    count: int
    median_s: float
    worst_s: float


def spread_of(durations: Sequence[float]) -> Spread | None:
    """Their median and worst; None of none."""
    if not durations:
        return None
    return Spread(len(durations), statistics.median(durations), max(durations))


@dataclass(slots=True)
class Record:
    """All numbers of one test."""

    #: Facts of committed calls: each member counts.
    calls: int = 0
    attempts: int = 0
    #: Calls that raised `CollectiveAborted`, as their program had asked for.
    aborts: int = 0
    retried_calls: int = 0
    syncs: int = 0
    rounds: int = 0
    #: Time that members spent in calls, and the part of it that went beyond twice the usual.
    call_s: float = 0.0
    lost_s: float = 0.0
    worst_call_s: float = 0.0
    worst_gap_s: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    deeds: deque[Deed] = field(default_factory=lambda: deque(maxlen=_DEEDS_KEPT_MAX))
    evicted: int = 0
    left: int = 0
    join_s: list[float] = field(default_factory=list)
    #: From SIGKILL to the return of the slowest survivor from a call without the victim.
    kill_s: list[float] = field(default_factory=list)
    #: Those in which no other fault came in between.
    calm_kill_s: list[float] = field(default_factory=list)
    stop_s: list[float] = field(default_factory=list)
    #: From the coordinator's restart to the next call that ended on any member.
    coordinator_s: list[float] = field(default_factory=list)
    generation: int = 0
    _durations: deque[float] = field(default_factory=lambda: deque(maxlen=_DURATIONS_MAX))
    _awaited: list[_Awaited] = field(default_factory=list)
    _committed_at: float | None = None
    _restarted_at: float | None = None

    @property
    def usual_call_s(self) -> float:
        """Median duration of a call."""
        return statistics.median(self._durations) if self._durations else 0.0

    def on_deed(self, deed: Deed, survivors: Iterable[str]) -> None:
        """A fault was injected; `survivors` are the members that it leaves running."""
        self.faults[deed.kind] += 1
        self.deeds.append(deed)
        if deed.kind in _DISTURBING:
            for awaited in self._awaited:
                awaited.is_disturbed = True
        if deed.kind in ("kill", "stop"):
            for awaited in self._awaited:
                awaited.waiting.discard(deed.peer)
        is_loss = deed.kind == "kill" or (deed.kind == "stop" and not deed.detail.startswith("for"))
        waiting = set(survivors) - {deed.peer}
        if is_loss and waiting:
            self._awaited.append(_Awaited(deed, waiting))
        self._settle()

    def on_return(self, fact: Return) -> None:
        """A call has ended well."""
        if self._restarted_at is not None:
            self.coordinator_s.append(fact.at - self._restarted_at)
            self._restarted_at = None
        if not isinstance(fact, (Called, Synced)):
            return
        took_s = fact.at - fact.began_at
        self.call_s += took_s
        self.worst_call_s = max(self.worst_call_s, took_s)
        self.lost_s += max(0.0, took_s - 2 * self.usual_call_s) if len(self._durations) > 100 else 0
        if len(self._durations) < 1000 or self.calls % 50 == 0:
            self._durations.append(took_s)
        if self._committed_at is not None:
            self.worst_gap_s = max(self.worst_gap_s, fact.at - self._committed_at)
        self._committed_at = max(fact.at, self._committed_at or 0.0)
        if isinstance(fact, Called):
            self.calls += 1
            self.kinds[fact.kind] += 1
            self.attempts += fact.attempts
            self.aborts += fact.aborts
            self.retried_calls += fact.attempts > 1 or fact.aborts > 0
            self.rounds = max(self.rounds, fact.round + 1)
        else:
            self.syncs += 1
            self.generation = max(self.generation, fact.generation)
        names = {peer_id.partition("-")[0] for peer_id in fact.contributors}
        for awaited in self._awaited:
            if fact.at > awaited.deed.at and awaited.deed.peer not in names:
                awaited.waiting.discard(fact.peer)
                awaited.last_at = max(awaited.last_at, fact.at)
        self._settle()

    def on_gone(self, peer: str) -> None:
        """A peer returns from no further call."""
        for awaited in self._awaited:
            awaited.waiting.discard(peer)
        self._settle()

    def on_coordinator_restarted(self, at: float) -> None:
        """It was started again."""
        self._restarted_at = at

    def _settle(self) -> None:
        """Keep the figures of losses that all survivors are over."""
        for awaited in [a for a in self._awaited if not a.waiting]:
            self._awaited.remove(awaited)
            if not awaited.last_at:
                continue  # nobody is left to tell
            seconds = awaited.last_at - awaited.deed.at
            if awaited.deed.kind == "kill":
                self.kill_s.append(seconds)
                if not awaited.is_disturbed:
                    self.calm_kill_s.append(seconds)
            else:
                self.stop_s.append(seconds)
