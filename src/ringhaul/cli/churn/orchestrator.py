"""Runs a churn test: processes, faults, facts; then a calm end, in which all must converge.

Decides when the test has failed; `checker.py` says what is wrong with a fact.
"""

import json
import queue
import tempfile
import time
from collections import deque
from pathlib import Path

from rich.console import Console

from ringhaul.cli.churn import resources
from ringhaul.cli.churn.checker import CALL_BOUND_S, Checker, overdue
from ringhaul.cli.churn.facts import LINES, Admitted, Called, Ended, Fact, Joined, Ready, Synced
from ringhaul.cli.churn.faults import STOP_NOTICED_S, Deed, Injector
from ringhaul.cli.churn.fleet import (
    COORDINATOR,
    LIVING,
    NETWORK,
    SPARES,
    Fleet,
    FleetError,
    Phase,
    Worker,
)
from ringhaul.cli.churn.garbage import Sent
from ringhaul.cli.churn.options import ChurnOptions
from ringhaul.cli.churn.program import Program
from ringhaul.cli.churn.record import Record
from ringhaul.cli.churn.report import Report
from ringhaul.cli.churn.view import View, choose_view
from ringhaul.cli.processes import Children, Line, terminating_as_interrupt

TICK_S = 0.05
#: Between two looks at resources and at who is overdue.
WATCH_INTERVAL_S = 1.0
#: All first peers have to be members within this: interpreters start, several at a time.
START_S = 60.0
#: The calm end: all that live have to be in one ring within this, and so many rounds done.
CALM_ROUNDS = 3
#: Facts kept for the folder that a failed test leaves.
FACTS_KEPT_MAX = 50_000
#: A stop shorter than this is no reason to evict anybody; the detector needs longer.
EVICTION_STOP_MIN_S = 3.5
EXIT_INTERRUPTED = 130


def run_churn(options: ChurnOptions) -> int:
    """Run the test, print the report, leave no process behind.

    Returns:
        0 only if nothing was wrong; 130 after Ctrl-C. Unless it is 0, logs are kept.
    """
    console = Console()
    logs = Path(options.logs or tempfile.mkdtemp(prefix="ringhaul-churn-"))
    logs.mkdir(parents=True, exist_ok=True)
    view = choose_view(console, is_silent=options.json)
    test: ChurnTest | None = None
    try:
        with terminating_as_interrupt(), Children() as children, view:
            test = ChurnTest(options, children, view, logs)
            test.run()
    except KeyboardInterrupt:
        console.print(f"interrupted; all processes have ended; logs: {logs}", markup=False)
        return EXIT_INTERRUPTED
    except FleetError as error:
        console.print(f"the test could not be run: {error}", markup=False, soft_wrap=True)
        return 1
    report = test.report()
    if report.problems or options.logs is not None:
        test.write_facts()
    else:
        for path in logs.iterdir():
            path.unlink()
        logs.rmdir()
    print(json.dumps(report.as_json()) if options.json else report.as_text())
    return 1 if report.problems else 0


class ChurnTest:
    """One test; its deeds in the order of its methods."""

    def __init__(self, options: ChurnOptions, children: Children, view: View, logs: Path) -> None:
        self._options = options
        self._children = children
        self._view = view
        self._logs = logs
        self._fleet = Fleet(options, children, logs)
        self._injector = Injector(options, self._fleet, self._on_deed, self._on_garbage)
        plan = Program(
            seed=options.seed,
            element_count=self._fleet.element_count,
            concurrent=options.concurrent,
            codec=options.codec,
        )
        self._checker = Checker(plan)
        self._facts: deque[str] = deque(maxlen=FACTS_KEPT_MAX)
        self._sent: queue.Queue[Sent] = queue.Queue()
        self._watch_at = 0.0
        self._is_ending = False
        #: Of the calm end: by peer, rounds that all living peers contributed to.
        self._whole_rounds: dict[str, set[int]] | None = None
        self._resources_seen = False
        self.record = Record()
        self.problems: list[str] = []
        self.began_at = time.monotonic()
        self.phase = "starting"

    # -- the course of a test ---------------------------------------------------------------------

    def run(self) -> None:
        """Start, churn, calm down, end. Stops at the first problem."""
        self._fleet.start()
        self._start()
        if not self.problems:
            self.phase = "churning"
            self._churn()
        if not self.problems:
            self.phase = "calm: all that live have to be in one ring"
            self._calm_down()
        if not self.problems:
            self.phase = "ending"
            self._end()
        if self.problems:
            self._fleet.dump_stacks()
            self._spend(1.0)
        self._find_leaks()

    def _start(self) -> None:
        """Let the first peers in."""
        give_up_at = time.monotonic() + START_S
        while not self.problems:
            self._turn()
            now = time.monotonic()
            for worker in self._fleet.ready_spares():
                self._fleet.send_in(worker, now)
            if len(self._fleet.in_phase(Phase.MEMBER)) >= self._options.peers:
                return
            if now > give_up_at:
                self._problem(f"not all peers were members within {START_S:g} s")

    def _churn(self) -> None:
        """Inject faults."""
        end_at = time.monotonic() + self._options.seconds
        self._injector.begin(time.monotonic())
        while not self.problems and (now := time.monotonic()) < end_at:
            self._injector.act(now)
            self._turn(keeps_spares=True)

    def _calm_down(self) -> None:
        """No faults any more: within a call's bound, all that live have to be in one ring."""
        now = time.monotonic()
        self._injector.wind_up(now)
        give_up_at = now + CALL_BOUND_S + STOP_NOTICED_S
        while not self.problems:
            self._injector.follow_up(time.monotonic())
            self._turn()
            living = self._fleet.in_phase(*LIVING)
            if all(worker.phase is Phase.MEMBER for worker in living):
                if self._whole_rounds is None:
                    self._whole_rounds = {}
                if all(
                    len(self._whole_rounds.get(worker.name, ())) >= CALM_ROUNDS for worker in living
                ):
                    return
            if time.monotonic() > give_up_at:
                states = ", ".join(f"{w.name} {w.phase.value}" for w in living)
                self._problem(f"the peers that live are not in one ring after the faults: {states}")

    def _end(self) -> None:
        """All leave, at once."""
        self._is_ending = True
        now = time.monotonic()
        for worker in self._fleet.in_phase(Phase.MEMBER):
            self._fleet.leave(worker, now)
        while not self.problems and self._fleet.in_phase(*LIVING):
            self._turn()

    def _spend(self, seconds: float) -> None:
        end_at = time.monotonic() + seconds
        while time.monotonic() < end_at:
            self._take_lines()

    def _turn(self, *, keeps_spares: bool = False) -> None:
        """Take what was reported, look after the processes, show it."""
        self._take_lines()
        now = time.monotonic()
        if keeps_spares and "join" in self._options.faults:
            spares = self._fleet.in_phase(Phase.STARTING, Phase.SPARE)
            if len(spares) < SPARES:
                self._fleet.start_spare()
        self._look_after(now)
        if now >= self._watch_at:
            self._watch_at = now + WATCH_INTERVAL_S
            self._watch(now)
        self._view.refresh(self)

    # -- facts ------------------------------------------------------------------------------------

    def _take_lines(self) -> None:
        """Wait one tick for lines; take all that are there."""
        lines = self._children.lines
        try:
            line = lines.get(timeout=TICK_S)
            for _ in range(1000):
                self._on_line(line)
                line = lines.get_nowait()
            self._on_line(line)
        except queue.Empty:
            pass
        while not self._sent.empty():
            sent = self._sent.get_nowait()
            if sent.problem is not None and not self._is_gone(sent.address):
                self._problem(sent.problem)

    def _on_line(self, line: Line) -> None:
        if line.child == NETWORK:
            answer = json.loads(line.text)
            if answer["event"] == "door":
                worker = self.worker(answer["peer"])
                worker.door = answer["control"], answer["data"]
            return
        if line.child == COORDINATOR:
            now = time.monotonic()
            if self._fleet.end_coordinator_gap(now):
                self.record.on_coordinator_restarted(now)
            return
        self._facts.append(line.text)
        fact = LINES.decode(line.text)
        if fact is None:
            self._problem(f"{line.child} printed {line.text[:200]!r}")
            return
        self._on_fact(self.worker(fact.peer), fact)

    def worker(self, name: str) -> Worker:
        """A peer's process by its name."""
        return self._fleet.workers[name]

    def _on_fact(self, worker: Worker, fact: Fact) -> None:
        if isinstance(fact, (Admitted, Synced, Called)):
            excused_s = self._fleet.excused_s(worker, fact.began_at, fact.at)
            late = overdue(worker.name, fact.began_at, fact.at, excused_s)
            for problem in [*self._checker.check(fact), *([late] if late else [])]:
                self._problem(problem)
            self.record.on_return(fact)
            self._note_ring(fact)
            self._fleet.committed_at = max(self._fleet.committed_at, fact.at)
        worker.heard_at = max(worker.heard_at, fact.at)
        match fact:
            case Ready():
                if worker.phase is Phase.STARTING:
                    worker.phase = Phase.SPARE
            case Joined():
                worker.peer_id, worker.joined_at = fact.peer_id, fact.at
                self.record.join_s.append(fact.at - worker.sent_at)
                if worker.phase is Phase.JOINING:
                    worker.phase = Phase.MEMBER
            case Synced():
                worker.holds_state = True
            case Ended():
                self._on_ended(worker, fact)
            case _:
                pass

    def _note_ring(self, fact: Admitted | Synced | Called) -> None:
        """Who is in a ring that works, and who is not."""
        ring = fact.ring_order if isinstance(fact, Admitted) else fact.contributors
        for stopped in self._fleet.in_phase(Phase.STOPPED):
            is_later = fact.at > stopped.stops[-1][0]
            if is_later and stopped.peer_id is not None and stopped.peer_id not in ring:
                stopped.is_done_without = True
        if self._whole_rounds is not None and isinstance(fact, Called):
            living = {worker.peer_id for worker in self._fleet.in_phase(*LIVING)}
            if living == set(fact.contributors):
                self._whole_rounds.setdefault(fact.peer, set()).add(fact.round)

    def _on_ended(self, worker: Worker, fact: Ended) -> None:
        """A peer has ended by itself: was that right?"""
        before = worker.phase
        worker.phase = Phase.ENDED if before is not Phase.KILLED else before
        worker.ended_why = fact.why
        self.record.on_gone(worker.name)
        if fact.why == "left":
            self.record.left += 1
            if before not in (Phase.LEAVING, Phase.KILLED):
                self._problem(f"{worker.name} left without having been told to")
            return
        stopped_s = max(((last or fact.at) - first for first, last in worker.stops), default=0.0)
        if fact.why == "EvictedError":
            self.record.evicted += 1
            is_stopped = stopped_s >= EVICTION_STOP_MIN_S
            is_blocked = (
                "no ring can include" in fact.text and fact.at <= self._injector.block_excused_until
            )
            if not is_stopped and not is_blocked:
                self._problem(f"{worker.name} was evicted for no reason: {fact.text}")
            return
        self._problem(f"{worker.name} ended with {fact.why}: {fact.text}")

    # -- processes --------------------------------------------------------------------------------

    def _look_after(self, now: float) -> None:
        """Who has ended, and who should have."""
        for worker in self._fleet.in_phase(*LIVING, Phase.STARTING, Phase.SPARE):
            if worker.child.is_drained and not self._children.lines.qsize():
                code, errors = worker.child.exit_code, worker.child.errors
                worker.phase = Phase.ENDED
                self._problem(f"{worker.name} ended with exit code {code}: {errors}")
        code = self._fleet.coordinator.exit_code
        if code is not None and not self._fleet.is_coordinator_killed:
            errors = self._fleet.coordinator.errors
            self._problem(f"the coordinator ended with exit code {code}: {errors}")
        if self._fleet.network_exit_code is not None:
            self._problem("the network process ended: a bug of the test")

    def _watch(self, now: float) -> None:
        """Who takes too long, and what do all of them hold?"""
        for worker in self._fleet.in_phase(Phase.JOINING, Phase.MEMBER, Phase.WOKEN, Phase.LEAVING):
            excused_s = self._fleet.excused_s(worker, worker.heard_at, now)
            if (late := overdue(worker.name, worker.heard_at, now, excused_s)) is not None:
                self._problem(f"{late}: it is {worker.phase.value}")
        for worker in self._fleet.in_phase(Phase.STOPPED):
            stopped_at = worker.stops[-1][0]
            away_s = self._fleet.away_s(stopped_at, now)
            is_late = now - stopped_at - away_s > STOP_NOTICED_S
            if worker.is_stopped_long and not worker.is_done_without and is_late:
                self._problem(f"{worker.name} is stopped, and the others still wait for it")
        for _, pid, samples in self._fleet.processes():
            sample = resources.take_sample(pid, now)
            if sample is not None:
                self._resources_seen = True
                samples.append(sample)

    def _find_leaks(self) -> None:
        array_bytes = 4 * self._fleet.element_count
        everyone = [(COORDINATOR, self._fleet.coordinator_samples)]
        everyone += [(worker.name, worker.samples) for worker in self._fleet.workers.values()]
        for name, samples in everyone:
            if (leak := resources.find_leak(name, samples, array_bytes)) is not None:
                self._problem(leak)

    # -- what others tell -------------------------------------------------------------------------

    def _on_deed(self, deed: Deed) -> None:
        running = self._fleet.in_phase(Phase.MEMBER)
        self.record.on_deed(deed, (worker.name for worker in running))

    def _on_garbage(self, sent: Sent) -> None:
        """From a thread that has sent it."""
        self._sent.put(sent)

    def _is_gone(self, address: str) -> bool:
        """Is it of a peer that cannot close connections any more, or could not meanwhile?"""
        for worker in self._fleet.workers.values():
            if worker.door is not None and worker.door[1] == address:
                return worker.phase is not Phase.MEMBER or bool(worker.stops)
        return bool(self._fleet.coordinator_gaps)

    def _problem(self, text: str) -> None:
        if len(self.problems) < 50:
            self.problems.append(f"{time.monotonic() - self.began_at:.2f} s: {text}")

    # -- the end ----------------------------------------------------------------------------------

    def members(self) -> list[Worker]:
        """For the view."""
        return self._fleet.in_phase(*LIVING)

    def report(self) -> Report:
        """What the test has shown."""
        samples = list(self._fleet.coordinator_samples)
        return Report(
            options=self._options,
            seconds=time.monotonic() - self.began_at,
            record=self.record,
            problems=self.problems,
            logs=str(self._logs) if self.problems or self._options.logs else None,
            peers_started=len(self._fleet.workers),
            coordinator_first=samples[0] if samples else None,
            coordinator_last=samples[-1] if samples else None,
            resources_seen=self._resources_seen,
        )

    def write_facts(self) -> None:
        """Leave facts and faults beside the logs."""
        (self._logs / "facts.jsonl").write_text("".join(self._facts))
        deeds = [
            f"{deed.at - self.began_at:8.2f} s {deed.at:.3f} {deed.kind} {deed.peer} {deed.detail}"
            for deed in self.record.deeds
        ]
        (self._logs / "faults.txt").write_text("\n".join([*deeds, "", *self.problems, ""]))
