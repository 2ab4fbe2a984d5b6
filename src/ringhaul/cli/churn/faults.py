"""Which fault comes when, and to whom: a seeded schedule.

The dice are seeded; what they hit depends on where the processes are, so that a seed gives a
similar run, not the same one.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from ringhaul.cli.churn import garbage
from ringhaul.cli.churn.fleet import Fleet, Phase, Worker
from ringhaul.cli.churn.options import ChurnOptions

#: How often a kind is drawn, relative to the others. `join` follows from who is missing.
_WEIGHTS = {"kill": 3.0, "leave": 1.0, "stop": 1.0, "cut": 2.0, "coordinator": 0.7, "garbage": 1.0}
_JOIN_WEIGHT, _JOIN_WEIGHT_OF_ONE_MISSING = 0.5, 4.0
#: Members that are left by kills, stops and leaves: mostly so many, now and then one.
_LEFT_USUALLY = 2
_LEFT_ONE_SHARE = 0.1
#: A brief stop is no reason to evict anybody; how many are brief.
_BRIEF_STOP_S = (0.1, 2.0)
_BRIEF_SHARE = 0.5
#: A long stop has to be noticed within this.
STOP_NOTICED_S = 30.0
_COORDINATOR_AWAY_S = (0.1, 3.0)
_CUTS = ("control", "control", "one", "one", "all", "all", "pause", "pause-control", "block")
_PAUSE_S = (0.2, 3.0)
#: No reason to evict anybody, as a brief stop.
_PAUSE_CONTROL_S = (0.2, 2.0)
#: Beyond what makes a link count as stalled.
_LONG_PAUSE_S = 13.0
_LONG_PAUSE_SHARE = 0.1
_BLOCK_S = (0.5, 6.0)
#: After a block has ended it may still be the reason why no ring could include a peer.
BLOCK_AFTERMATH_S = 30.0
#: One peer is spared for this share of the test, so that some live long enough to show leaks.
_SPARED_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Deed:
    """A fault that was injected."""

    at: float
    kind: str
    peer: str
    detail: str = ""


class Injector:
    """Injects faults while `act` is called."""

    def __init__(
        self,
        options: ChurnOptions,
        fleet: Fleet,
        report: Callable[[Deed], None],
        report_garbage: Callable[[garbage.Sent], None],
    ) -> None:
        self._options = options
        self._fleet = fleet
        self._report = report
        self._report_garbage = report_garbage
        self._dice = random.Random(options.seed)
        self._due_at = 0.0
        #: What is to be done later: when, and what.
        self._later: list[tuple[float, Callable[[float], None]]] = []
        self._spared = ""
        self._spared_until = 0.0
        #: Until when a blocked pair may be the reason that no ring includes a peer.
        self.block_excused_until = 0.0

    def begin(self, now: float) -> None:
        """The schedule starts."""
        self._due_at = now + self._pause_s()

    def act(self, now: float) -> None:
        """Do what is due."""
        while self._due_at <= now:
            self._due_at += self._pause_s()
            self._inject(now)
        self.follow_up(now)

    def follow_up(self, now: float) -> None:
        """Only what faults entail that were injected before."""
        due = [entry for entry in self._later if entry[0] <= now]
        self._later = [entry for entry in self._later if entry[0] > now]
        for _, action in due:
            action(now)
        for worker in self._fleet.in_phase(Phase.STOPPED):
            if worker.is_stopped_long and worker.is_done_without:
                self._end_long_stop(worker, now)

    def wind_up(self, now: float) -> None:
        """No more faults: wake who is stopped, bring back the coordinator."""
        for _, action in self._later:
            action(now)
        self._later.clear()
        for worker in self._fleet.in_phase(Phase.STOPPED):
            if not worker.is_stopped_long:
                self._fleet.wake(worker, now)

    def _pause_s(self) -> float:
        return self._dice.uniform(0.2, 1.8) / self._options.rate

    # -- which, and to whom ---------------------------------------------------------------------

    def _inject(self, now: float) -> None:
        """One fault, of a kind that is possible now."""
        members = self._members(now)
        weights = {kind: self._weight(kind, members, now) for kind in self._options.faults}
        kinds = [kind for kind, weight in weights.items() if weight > 0]
        if not kinds:
            return
        kind = self._dice.choices(kinds, [weights[kind] for kind in kinds])[0]
        match kind:
            case "kill":
                self._kill(self._dice.choice(members), now)
            case "leave":
                self._leave(self._dice.choice(members), now)
            case "stop":
                self._stop(self._dice.choice(members), now)
            case "join":
                self._join(now)
            case "cut":
                self._cut(self._dice.choice(self._fleet.in_phase(Phase.MEMBER)), now)
            case "coordinator":
                self._kill_coordinator(now)
            case _:
                self._throw_garbage(now)

    def _members(self, now: float) -> list[Worker]:
        """Who may be taken away."""
        members = self._fleet.in_phase(Phase.MEMBER)
        # what the run has committed is lost with the last one that holds it
        holders = [member.name for member in members if member.holds_state]
        worthy = holders or [member.name for member in members]
        if worthy and (now >= self._spared_until or self._spared not in worthy):
            self._spared = self._dice.choice(worthy)
            self._spared_until = now + _SPARED_SHARE * self._options.seconds
        left = 1 if self._dice.random() < _LEFT_ONE_SHARE else _LEFT_USUALLY
        if len(members) <= left:
            return []
        return [member for member in members if member.name != self._spared]

    def _weight(self, kind: str, members: list[Worker], now: float) -> float:
        match kind:
            case "join":
                here = len(self._fleet.in_phase(Phase.MEMBER, Phase.JOINING))
                missing = self._options.peers - here
                if missing < 0 or not self._fleet.ready_spares():
                    return 0.0
                return _JOIN_WEIGHT + _JOIN_WEIGHT_OF_ONE_MISSING * missing
            case "kill" | "leave":
                return _WEIGHTS[kind] if members else 0.0
            case "stop":
                return (
                    _WEIGHTS[kind] if members and not self._fleet.in_phase(Phase.STOPPED) else 0.0
                )
            case "cut":
                return _WEIGHTS[kind] if self._fleet.in_phase(Phase.MEMBER) else 0.0
            case "coordinator":
                # killed again before anything was committed, it would only wait for members
                gaps = self._fleet.coordinator_gaps
                back_at = gaps[-1][1] if gaps else 0.0
                is_well = back_at is not None and self._fleet.committed_at >= back_at
                return _WEIGHTS[kind] if is_well else 0.0
            case _:
                return _WEIGHTS[kind]

    # -- faults ---------------------------------------------------------------------------------

    def _kill(self, worker: Worker, now: float) -> None:
        self._report(Deed(now, "kill", worker.name))
        self._fleet.kill(worker)

    def _leave(self, worker: Worker, now: float) -> None:
        self._report(Deed(now, "leave", worker.name))
        self._fleet.leave(worker, now)

    def _join(self, now: float) -> None:
        worker = self._fleet.ready_spares()[0]
        self._report(Deed(now, "join", worker.name))
        self._fleet.send_in(worker, now)

    def _stop(self, worker: Worker, now: float) -> None:
        if self._dice.random() < _BRIEF_SHARE:
            seconds = self._dice.uniform(*_BRIEF_STOP_S)
            self._later.append((now + seconds, lambda at: self._end_brief_stop(worker, at)))
            self._report(Deed(now, "stop", worker.name, f"for {seconds:.1f} s"))
            self._fleet.stop(worker, now, is_long=False)
        else:
            self._report(Deed(now, "stop", worker.name, "until the others do without it"))
            self._fleet.stop(worker, now, is_long=True)

    def _end_brief_stop(self, worker: Worker, now: float) -> None:
        if worker.phase is Phase.STOPPED:
            self._fleet.wake(worker, now)

    def _end_long_stop(self, worker: Worker, now: float) -> None:
        if self._dice.random() < 0.5:
            self._fleet.kill(worker)
        else:
            self._fleet.wake(worker, now)

    def _cut(self, worker: Worker, now: float) -> None:
        how = self._dice.choice(_CUTS)
        seconds = 0.0
        if how == "pause":
            is_long = self._dice.random() < _LONG_PAUSE_SHARE
            seconds = _LONG_PAUSE_S if is_long else self._dice.uniform(*_PAUSE_S)
        if how == "pause-control":
            seconds = self._dice.uniform(*_PAUSE_CONTROL_S)
        if how == "block":
            seconds = self._dice.uniform(*_BLOCK_S)
            self.block_excused_until = now + seconds + BLOCK_AFTERMATH_S
        detail = f"{how} for {seconds:.1f} s" if seconds else how
        self._report(Deed(now, "cut", worker.name, detail))
        self._fleet.cut(worker, how, seconds)

    def _kill_coordinator(self, now: float) -> None:
        seconds = self._dice.uniform(*_COORDINATOR_AWAY_S)
        self._report(Deed(now, "coordinator", "coordinator", f"away for {seconds:.1f} s"))
        self._fleet.kill_coordinator(now)
        self._later.append((now + seconds, self._fleet.restart_coordinator))

    def _throw_garbage(self, now: float) -> None:
        kind = self._dice.choice(garbage.KINDS)
        members = self._fleet.in_phase(Phase.MEMBER)
        target = self._dice.choice([None, *members])
        peer_id = next((m.peer_id for m in members if m.peer_id), "peer-000000")
        where, address = "coordinator", self._fleet.address
        if target is not None and target.door is not None:
            where, address = target.name, target.door[1]
        self._report(Deed(now, "garbage", where, kind))
        garbage.throw(kind, address, self._dice, peer_id, self._report_garbage)
