"""The processes of a churn test: a coordinator, peers, spare peers, the network between them.

Starts, stops and ends them, and knows what state each is in. Decides neither when a fault is
due nor what is right.
"""

import enum
import json
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ringhaul import limits
from ringhaul.cli.churn.options import ChurnOptions
from ringhaul.cli.churn.resources import Sample
from ringhaul.cli.processes import Child, Children, await_address

COORDINATOR = "coordinator"
NETWORK = "network"
#: Interpreters that have started already, so that a newcomer comes at once.
SPARES = 3
#: Faults that need the network process: the others connect directly.
NETWORK_FAULTS = frozenset({"cut", "garbage"})
#: Samples of one process, one a second: a day's.
_SAMPLES_MAX = 100_000


class FleetError(Exception):
    """The test could not be run at all; the message says why."""


class Phase(enum.Enum):
    """What a peer's process is doing, as far as the orchestrator knows."""

    STARTING = "starting"
    SPARE = "spare"
    JOINING = "joining"
    MEMBER = "member"
    STOPPED = "stopped"
    #: Stopped until the others had done without it, then woken: it has to hear of that.
    WOKEN = "woken"
    LEAVING = "leaving"
    KILLED = "killed"
    ENDED = "ended"


LIVING = frozenset({Phase.JOINING, Phase.MEMBER, Phase.STOPPED, Phase.WOKEN, Phase.LEAVING})


@dataclass(slots=True, kw_only=True)
class Worker:
    """One peer's process."""

    name: str
    child: Child
    phase: Phase = Phase.STARTING
    peer_id: str | None = None
    #: Where it meets the coordinator and where others meet it, if there is a network process.
    door: tuple[str, str] | None = None
    #: When it was told to connect, and when `connect` returned.
    sent_at: float = 0.0
    joined_at: float | None = None
    #: It has committed to the shared state.
    holds_state: bool = False
    #: When it last reported anything, or was told to do something: its call has begun then.
    heard_at: float = 0.0
    #: Times in which it was stopped: the last may still go on.
    stops: list[tuple[float, float | None]] = field(default_factory=list)
    #: It is stopped until the others have gone on without it.
    is_stopped_long: bool = False
    #: The others have gone on without it since it was stopped.
    is_done_without: bool = False
    ended_why: str | None = None
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=_SAMPLES_MAX))


class Fleet:
    """All processes of one test."""

    def __init__(self, options: ChurnOptions, children: Children, logs: Path) -> None:
        self._options = options
        self._children = children
        self._logs = logs
        self._count = 0
        self.workers: dict[str, Worker] = {}
        self.coordinator: Child
        self.coordinator_samples: deque[Sample] = deque(maxlen=_SAMPLES_MAX)
        self.address = ""
        #: Times in which the coordinator was away: the last may still go on.
        self.coordinator_gaps: list[tuple[float, float | None]] = []
        #: When a call was last committed anywhere.
        self.committed_at = 0.0
        self.is_coordinator_killed = False
        self._network: Child | None = None

    # -- coordinator and network ------------------------------------------------------------------

    def start(self) -> None:
        """Start the coordinator, the network if faults need it, and the first spare peers.

        Raises:
            FleetError: the coordinator did not start.
        """
        for old in self._logs.glob("journal*"):  # of an earlier test in this folder
            old.unlink()
        self._start_coordinator("127.0.0.1:0", "--new")
        address = await_address(self._children, self.coordinator)
        if address is None:
            raise FleetError(f"the coordinator did not start: {self.coordinator.errors}")
        self.address = address
        if NETWORK_FAULTS & set(self._options.faults):
            host, _, port = address.rpartition(":")
            module = ["-m", "ringhaul.cli.churn.network", host, port]
            self._network = self._children.start(NETWORK, module, self._log_of(NETWORK))
        for _ in range(self._options.peers):
            self.start_spare()

    def _start_coordinator(self, listen: str, *options: str) -> None:
        journal = str(self._logs / "journal")
        arguments = ["-m", "ringhaul", "coordinator", "--listen", listen, "--journal", journal]
        arguments += ["--json", *options]
        self.coordinator = self._children.start(COORDINATOR, arguments, self._log_of(COORDINATOR))

    def kill_coordinator(self, now: float) -> None:
        """SIGKILL the coordinator."""
        self.coordinator.kill()
        self.is_coordinator_killed = True
        self.coordinator_gaps.append((now, None))

    def restart_coordinator(self, now: float) -> None:
        """Start it again, at the same address; it says when it listens."""
        self._start_coordinator(self.address)
        self.coordinator_samples.clear()
        self.is_coordinator_killed = False

    def end_coordinator_gap(self, now: float) -> bool:
        """It listens. Tell whether it was away before."""
        if not self.coordinator_gaps:
            return False
        began_at, _ = self.coordinator_gaps[-1]
        self.coordinator_gaps[-1] = (began_at, now)
        return True

    @property
    def network_exit_code(self) -> int | None:
        """None while it runs, or if there is none."""
        return None if self._network is None else self._network.exit_code

    def cut(self, worker: Worker, how: str, seconds: float) -> None:
        """Disturb the connections of a peer."""
        self._tell_network(do="cut", peer=worker.name, how=how, seconds=seconds)

    def _tell_network(self, **command: object) -> None:
        assert self._network is not None
        self._network.tell(json.dumps(command))

    def _log_of(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    # -- peers ----------------------------------------------------------------------------------

    def start_spare(self) -> Worker:
        """Start a peer's process, which waits for the word to connect."""
        self._count += 1
        name = f"c{self._count}"
        options = self._options
        arguments = {
            "--name": name,
            "--seed": str(options.seed),
            "--count": str(self.element_count),
            "--concurrent": str(options.concurrent),
            "--codec": options.codec,
        }
        flat = [part for pair in arguments.items() for part in pair]
        module = ["-m", "ringhaul.cli.churn.worker", *flat]
        child = self._children.start(name, module, self._log_of(name))
        worker = self.workers[name] = Worker(name=name, child=child)
        if self._network is not None:
            self._tell_network(do="open", peer=name)
        return worker

    @property
    def element_count(self) -> int:
        """Of the largest arrays, in float32."""
        return int(self._options.array_mib * (1 << 20)) // 4

    def in_phase(self, *phases: Phase) -> list[Worker]:
        """Peers in any of these phases, oldest first."""
        return [worker for worker in self.workers.values() if worker.phase in phases]

    def ready_spares(self) -> list[Worker]:
        """Peers that can connect at once."""
        needs_door = self._network is not None
        return [w for w in self.in_phase(Phase.SPARE) if w.door is not None or not needs_door]

    def send_in(self, worker: Worker, now: float) -> None:
        """Let a spare peer connect."""
        address = self.address if worker.door is None else worker.door[0]
        worker.child.tell(f"go {address}")
        worker.phase = Phase.JOINING
        worker.sent_at = worker.heard_at = now

    def kill(self, worker: Worker) -> None:
        """SIGKILL."""
        worker.child.kill()
        worker.phase = Phase.KILLED

    def stop(self, worker: Worker, now: float, *, is_long: bool) -> None:
        """SIGSTOP."""
        worker.child.send_signal(signal.SIGSTOP)
        worker.phase = Phase.STOPPED
        worker.is_stopped_long = is_long
        worker.is_done_without = False
        worker.stops.append((now, None))

    def wake(self, worker: Worker, now: float) -> None:
        """SIGCONT."""
        worker.child.send_signal(signal.SIGCONT)
        worker.phase = Phase.WOKEN if worker.is_done_without else Phase.MEMBER
        began_at, _ = worker.stops[-1]
        worker.stops[-1] = (began_at, now)
        if worker.is_done_without:
            worker.heard_at = now

    def leave(self, worker: Worker, now: float) -> None:
        """Tell it to leave in an orderly way."""
        worker.child.tell("leave")
        worker.phase = Phase.LEAVING
        worker.heard_at = max(worker.heard_at, now)

    def dump_stacks(self) -> None:
        """Let all peers write to their logs where they are."""
        for worker in self.in_phase(*LIVING):
            if worker.phase is not Phase.STOPPED and worker.child.exit_code is None:
                worker.child.send_signal(signal.SIGUSR1)

    def excused_s(self, worker: Worker, began_at: float, now: float) -> float:
        """How long, between two instants, it was stopped, or the coordinator was away."""
        return _covered_s([*worker.stops, *self._gaps()], began_at, now)

    def away_s(self, began_at: float, now: float) -> float:
        """How long, between two instants, the coordinator was away."""
        return _covered_s(self._gaps(), began_at, now)

    def _gaps(self) -> list[tuple[float, float | None]]:
        """A coordinator that is back waits for its members up to the grace, so one that is
        stopped holds all of them up, and the coordinator may be killed again meanwhile.
        """
        grace_s = limits.SESSION_GRACE_S
        return [
            (gone_at, None if back_at is None else back_at + grace_s)
            for gone_at, back_at in self.coordinator_gaps
        ]

    def processes(self) -> Iterator[tuple[str, int, deque[Sample]]]:
        """Name, process id and samples of all whose resources are watched."""
        yield COORDINATOR, self.coordinator.pid, self.coordinator_samples
        for worker in self.in_phase(Phase.JOINING, Phase.MEMBER):
            yield worker.name, worker.child.pid, worker.samples


def _covered_s(gaps: Iterable[tuple[float, float | None]], began_at: float, now: float) -> float:
    """How much of the time between two instants lies in these gaps; each instant counts once."""
    covered_s, until = 0.0, began_at
    for first, last in sorted(gaps, key=lambda gap: gap[0]):
        end = now if last is None else min(now, last)
        covered_s += max(0.0, end - max(first, until))
        until = max(until, end)
    return covered_s
