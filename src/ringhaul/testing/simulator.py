"""One simulated run: the coordinator's machine, many peers' machines, and faults, by a seed.

Two phases: first anything may fail and nothing may be wrong; then faults stop and everything
has to converge. `run_seed` replays exactly.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ringhaul.core.coordinator.machine import Event
from ringhaul.core.steps import Tick
from ringhaul.ids import PeerId
from ringhaul.testing.agenda import Agenda
from ringhaul.testing.application import CALM_ROUNDS
from ringhaul.testing.control_plane import ControlPlane
from ringhaul.testing.coordinator_process import CoordinatorProcess
from ringhaul.testing.data_plane import DataPlane
from ringhaul.testing.ledger import Ledger, OracleError
from ringhaul.testing.process import Process
from ringhaul.testing.state_plane import StatePlane
from ringhaul.testing.weather import Weather

ACTS_MAX = 20_000
FAULTY_S_MAX = 25.0
#: Everything has to be well so long after the last fault.
CALM_S_MAX = 120.0
UNACKNOWLEDGED_MAX = 400
OPEN_MAX = 8


@dataclass(frozen=True, slots=True)
class Report:
    """What one run did."""

    seed: int
    acts: int
    simulated_s: float
    seen: dict[str, int]


class World:
    """Everything of one run."""

    def __init__(self, seed: int, *, tell: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.agenda = Agenda(seed)
        dice = self.agenda.dice
        self.ledger = Ledger()
        self.control = ControlPlane(self)
        self.data = DataPlane(self)
        self.states = StatePlane(self)
        self.processes: list[Process] = []
        self.by_id: dict[PeerId, Process] = {}
        self.is_faulty = True
        self.admits_twice = dice.random() < 0.15
        self.spoils_results = dice.random() < 0.05
        self.has_mismatch = dice.random() < 0.05
        self.acts = 0
        self._tell = tell
        self._group_count = 2 if dice.random() < 0.2 else 1
        self._min_world_size = 2 if dice.random() < 0.15 else 1
        self._faulty_acts = dice.randrange(80, 320)
        self._calm_since = 0.0
        self.weather = Weather(self)
        #: How long programs think between two calls, without faults.
        self.think_s = (0.0, 0.05)
        self.coordinator = CoordinatorProcess(self)
        self._faults = self._pick_faults()

    def _pick_faults(self) -> dict[int, Callable[[], None]]:
        dice = self.agenda.dice
        kinds: list[Callable[[], None]] = [
            *[self._kill] * 3,
            *[self._spawn] * 3,
            *[self._reset_control] * 3,
            *[self._break_link] * 3,
            *[self._cut_pair] * 2,
            self._swallow,
            self._pause,
            self._leave,
            self.coordinator.pause,
            *[self.coordinator.kill] * 2,
        ]
        kinds = dice.sample(kinds, dice.randrange(3, 10))  # each run has its own weather
        count = dice.choice((0, 1, 2, 3, 4, 6, 8, 10))
        return {dice.randrange(20, self._faulty_acts): dice.choice(kinds) for _ in range(count)}

    # -- the run ------------------------------------------------------------------------------

    def run(self) -> Report:
        """Go through both phases.

        Raises:
            OracleError: a promise was broken.
            InvariantError: a machine found itself broken.
        """
        self.step_coordinator(Tick())
        for _ in range(self.agenda.dice.randrange(2, 5)):
            self._spawn()
        if self.has_mismatch:
            self.processes[0].app.errs_in = 2
        while not self._is_done():
            if self.acts >= ACTS_MAX or self.agenda.now > self._calm_since + CALM_S_MAX:
                raise OracleError(self._tell_state())
            self._act()
        self._check_end()
        return Report(self.seed, self.acts, self.agenda.now, dict(self.ledger.seen))

    def _act(self) -> None:
        self.acts += 1
        if self.is_faulty:
            self._calm_since = self.agenda.now
            fault = self._faults.pop(self.acts, None)
            if fault is not None:
                fault()
            self.weather.blow(self.acts)
            if self.acts >= self._faulty_acts or self.agenda.now > FAULTY_S_MAX:
                self._calm_down()
        if not self.agenda.go_on():
            raise OracleError("nothing is left to happen")

    def _calm_down(self) -> None:
        self.trace("faults", "stop")
        self.is_faulty = False
        self.weather.calm_down()
        if self.agenda.chance(0.6):
            self.data.cut.clear()
        for process in self.processes:
            process.app.clean_rounds = 0
        for group in range(self._group_count):
            here = sum(1 for p in self.processes if p.is_alive and p.group == group)
            for _ in range(here, self._min_world_size):
                self._spawn(group)

    def _is_done(self) -> bool:
        if self.is_faulty or not self.coordinator.is_up:
            return False
        alive = [process for process in self.processes if process.is_alive]
        here = Counter(process.group for process in alive)
        for group in range(self._group_count):
            if here[group] < self._min_world_size:  # evicted meanwhile
                self._spawn(group)
                return False
        groups = self.coordinator.machine.run.groups.values()
        if any(known.wanted or len(known.ring_order) != here[known.number] for known in groups):
            return False  # one has just been killed
        return all(p.is_member and p.app.clean_rounds >= CALM_ROUNDS for p in alive)

    def _check_end(self) -> None:
        run = self.coordinator.machine.run
        for number in range(self._group_count):
            alive = [p for p in self.processes if p.is_alive and p.group == number]
            group = run.groups[number]
            if set(group.ring_order) != {p.peer_id for p in alive}:
                raise OracleError(f"the ring is {group.ring_order}\n{self._tell_state()}")
            if len(group.open) > OPEN_MAX or len(group.closed) > self.acts:
                raise OracleError("operations pile up")
            for process in alive:
                state = process.machine.state
                if process.is_paused or state.generation != group.generation:
                    continue
                sessions = (state.session, run.peers[process.peer_id].session)
                if any(len(s.unacknowledged()) > UNACKNOWLEDGED_MAX for s in sessions):
                    raise OracleError("messages pile up")
                if state.ring_order != group.ring_order or len(state.calls) > OPEN_MAX:
                    raise OracleError(f"{process.name} is behind\n{self._tell_state()}")

    def _tell_state(self) -> str:
        lines = [f"no convergence after {self.acts} acts, at {self.agenda.now:.1f} s"]
        lines += [
            f"group {group.number}: generation {group.generation} of "
            f"{group.proposed_generation}, {group.ring_order}, wanted {group.wanted}, "
            f"proposal {group.proposal}, open {group.open}, doubts {group.doubts}"
            for group in self.coordinator.machine.run.groups.values()
        ]
        for process in self.processes:
            if process.is_alive:
                state = process.machine.state
                lines.append(
                    f"{process.name}: {state.phase.value}, generation {state.generation}, "
                    f"calls {[str(key) for key in state.calls]}, admit {state.admit}, "
                    f"clean rounds {process.app.clean_rounds}, link {state.link}"
                )
        return "\n".join(lines)

    def step_coordinator(self, event: Event) -> None:
        """Give the coordinator an event."""
        self.coordinator.step(event)

    # -- faults -------------------------------------------------------------------------------

    def _pick(self) -> Process | None:
        alive = [process for process in self.processes if process.is_alive]
        return self.agenda.dice.choice(alive) if alive else None

    def _spawn(self, group: int | None = None) -> None:
        index = len(self.processes) + 1
        if group is None:
            group = self.agenda.dice.randrange(self._group_count)
        process = Process(self, index=index, group=group, min_world_size=self._min_world_size)
        self.processes.append(process)
        self.agenda.after(self.agenda.between(0.0, 0.1), process.start)

    def _kill(self) -> None:
        process = self._pick()
        if process is None:
            return
        if self.agenda.chance(0.5):
            process.effects_left = self.agenda.dice.randrange(1, 6)
        else:
            process.die("killed")

    def _leave(self) -> None:
        process = self._pick()
        if process is not None:
            self.trace("fault", f"{process.name} leaves")
            process.leave()

    def _reset_control(self) -> None:
        process = self._pick()
        if process is not None and process.connection is not None:
            self.trace("fault", f"{process.name}: control connection is reset")
            self.control.reset(process.connection)

    def _swallow(self) -> None:
        process = self._pick()
        if process is not None and process.connection is not None:
            self.trace("fault", f"{process.name}: control connection swallows all")
            self.control.swallow(process.connection)

    def _pause(self) -> None:
        process = self._pick()
        if process is not None and not process.is_paused:
            duration_s = self.agenda.dice.choice((0.5, 2.5, 3.5, 6.0, 7.0, 12.0))
            self.trace("fault", f"{process.name} is stopped for {duration_s} s")
            process.pause(duration_s)

    def _break_link(self) -> None:
        pair = self.data.pick_link()
        if pair is not None:
            self.trace("fault", f"link {pair[0].name} -> {pair[1].name} is reset")
            self.data.break_link(pair)

    def _cut_pair(self) -> None:
        first, second = self._pick(), self._pick()
        if first is not None and second is not None and first is not second:
            self.trace("fault", f"pair {first.name} -> {second.name} is cut")
            self.data.cut.add((first, second))
            if (first, second) in self.data.up:
                self.data.break_link((first, second))

    def trace(self, who: str, what: object) -> None:
        """Tell what happens, if anybody listens."""
        if self._tell is not None:
            self._tell(f"{self.agenda.now:9.4f} {who:12} {what}")


def run_seed(seed: int, *, tell: Callable[[str], None] | None = None) -> Report:
    """Simulate one run.

    Raises:
        OracleError: a promise was broken.
        InvariantError: a machine found itself broken.
    """
    return World(seed, tell=tell).run()
