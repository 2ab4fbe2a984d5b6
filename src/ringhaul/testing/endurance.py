"""A long simulated run on a bad path and busy machines: nobody may be thrown out.

Every path has a long round trip and loses packets, and every process, the coordinator too, is
kept from running again and again, as on a machine with more work than cores. No fault is
done: whoever is evicted is evicted wrongly.
"""

from ringhaul.core.coordinator.machine import Coordinator, Options
from ringhaul.core.steps import Tick
from ringhaul.testing.ledger import OracleError
from ringhaul.testing.process import Process
from ringhaul.testing.simulator import Report, World

HOUR_S = 3600.0
ROUND_TRIP_S = 0.2
LOSS = 0.02
#: How long a step is kept waiting at most, and how often.
KEPT_WAITING_S = 0.4
EVERY_S = 1.0
#: Programs compute for so long at most between two calls.
THINKS_S = 6.0
#: Must never be seen.
UNWANTED = (
    "evicted",
    "lost by silence",
    "lost by two witnesses",
    "lost after the grace of its session",
    "session resumed",
    "opened by repair",
    "verdict aborted",
    "verdict lost",
)
PEERS = 4


class Endurance(World):
    """A world without faults, far apart and busy."""

    def __init__(self, seed: int, *, options: Options | None = None) -> None:
        super().__init__(seed)
        self.is_faulty = self.admits_twice = self.spoils_results = self.has_mismatch = False
        self._group_count = 2
        self._min_world_size = 1
        self.think_s = (0.0, THINKS_S)
        self.coordinator.machine = Coordinator(
            run_id=bytes(16), incarnation=1, secret=b"endurance" * 2, options=options
        )
        self.weather.calm_down()
        self.weather.set_path(distance_s=ROUND_TRIP_S / 2, loss=LOSS)

    def run_for(self, duration_s: float = HOUR_S) -> Report:
        """Let it run.

        Raises:
            OracleError: somebody was lost, or had to run an operation again; or the rounds
                did not go on.
        """
        self.step_coordinator(Tick())
        for number in range(PEERS):
            self._spawn(group=number % 2)
        self._keep_waiting()
        while self.agenda.now < duration_s:
            self.acts += 1
            if not self.agenda.go_on():
                raise OracleError("nothing is left to happen")
        wrong = {path: self.ledger.seen[path] for path in UNWANTED if self.ledger.seen[path]}
        if wrong:
            raise OracleError(f"seed {self.seed}: nobody was lost, but: {wrong}")
        rounds = [process.app.clean_rounds for process in self.processes]
        if min(rounds) < duration_s / 60:
            raise OracleError(f"seed {self.seed}: only so many rounds: {rounds}")
        return Report(self.seed, self.acts, self.agenda.now, dict(self.ledger.seen))

    def _keep_waiting(self) -> None:
        agenda = self.agenda
        for process in self.processes:
            agenda.after(agenda.between(0.0, EVERY_S), lambda p=process: self._hold(p))  # type: ignore[misc]
        if agenda.chance(0.5):
            self.coordinator.pause(agenda.between(0.0, KEPT_WAITING_S))
        agenda.after(EVERY_S, self._keep_waiting)

    def _hold(self, process: Process) -> None:
        if process.is_alive and not process.is_paused:
            process.pause(self.agenda.between(0.0, KEPT_WAITING_S))
