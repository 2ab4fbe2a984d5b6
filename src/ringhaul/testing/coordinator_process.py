"""A simulated coordinator: its machine, its journal, and its deaths and restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringhaul.core.coordinator.journal import Memory
from ringhaul.core.coordinator.machine import Coordinator, Event, Options
from ringhaul.core.coordinator.model import Effect, Forget, Save, SavedGroup, SavedPeer
from ringhaul.core.steps import Close, Log, Send, Tick
from ringhaul.ids import PeerId
from ringhaul.testing.ledger import OracleError
from ringhaul.wire.coordinator_messages import Proposal
from ringhaul.wire.session_messages import Welcome

if TYPE_CHECKING:
    from ringhaul.testing.simulator import World

_RUN_ID = bytes(range(16))
_SECRET = b"simulated secret"
#: A journal that is written behind the machine's back may lack so much when it dies.
_UNSAVED_MAX = 5


class CoordinatorProcess:
    """The coordinator of a world, through all its starts."""

    def __init__(self, world: World) -> None:
        self._world = world
        dice = world.agenda.dice
        self._options = Options(
            session_grace_s=dice.choice((3.0, 10.0)),
            silence_idle_s=dice.choice((8.0, 30.0)),
            waiting_report_s=dice.choice((1.0, 30.0)),
            resume_wait_s=dice.choice((1.5, 3.0)),
        )
        self._starts = 1
        self._journal: list[Save | Forget] = []
        self._tick_at = float("inf")
        #: Events that came while it is stopped; None while it runs.
        self._waiting: list[Event] | None = None
        self._effects_left: int | None = None
        self.is_up = True
        self.machine = Coordinator(
            run_id=_RUN_ID, incarnation=1, secret=_SECRET, options=self._options, check_every=1
        )

    # -- the machine --------------------------------------------------------------------------

    def step(self, event: Event) -> None:
        """Give the machine an event."""
        if not self.is_up:
            return
        if self._waiting is not None:
            self._waiting.append(event)
            return
        world = self._world
        world.trace("coordinator", event)
        effects = self.machine.step(event, world.agenda.now)
        world.ledger.watch_coordinator(effects)
        for effect in effects:
            if self._effects_left is not None:
                self._effects_left -= 1
                if self._effects_left < 0:
                    world.ledger.seen["coordinator killed between two effects"] += 1
                    self._die()
                    return
            self._perform(effect)
        self._schedule_tick()

    def _perform(self, effect: Effect) -> None:
        world = self._world
        match effect:
            case Send(link, envelope):
                if isinstance(envelope.message, Proposal):
                    group = world.control.connections[link].process.group
                    world.ledger.check_generation(group, envelope.message)
                if isinstance(envelope.message, Welcome):
                    world.by_id[envelope.message.peer] = world.control.connections[link].process
                world.control.send_down(link, envelope)
            case Close(link, reason):
                world.control.end_from_coordinator(link, reason)
            case Save() | Forget():
                self._journal.append(effect)
            case Log(text):
                self._on_log(text)

    def _on_log(self, text: str) -> None:
        world = self._world
        world.trace("coordinator", f"log: {text}")
        name, _, why = text.partition(" is out: its connection closed, and ")
        if why and world.by_id[PeerId(name)].is_alive:
            raise OracleError(f"a live peer was taken for dead: {text}")
        if text.endswith("the run goes on"):
            run = self.machine.run
            here = {world.by_id[p].name for g in run.groups.values() for p in g.ring_order}
            world.ledger.forget_all_but(here)

    def _schedule_tick(self) -> None:
        at = self.machine.next_deadline()
        if at < self._tick_at:
            self._tick_at = at
            self._world.agenda.at(at, lambda: self._tick(at))

    def _tick(self, at: float) -> None:
        if at != self._tick_at:
            return
        self._tick_at = float("inf")
        if self._waiting is not None or not self.is_up:
            return
        if self.machine.next_deadline() <= self._world.agenda.now:
            self.step(Tick())
        else:
            self._schedule_tick()

    # -- faults -------------------------------------------------------------------------------

    def pause(self, duration_s: float | None = None) -> None:
        """SIGSTOP; it wakes after a while, also after a long one."""
        if self._waiting is not None or not self.is_up:
            return
        if duration_s is None:
            duration_s = self._world.agenda.dice.choice((2.5, 4.0, 8.0, 12.0, 60.0))
        self._world.trace("fault", f"the coordinator is stopped for {duration_s} s")
        self._waiting = []
        self._world.agenda.after(duration_s, self._wake)

    def _wake(self) -> None:
        if self._waiting is None:
            return
        waiting, self._waiting = self._waiting, None
        for event in waiting:
            self.step(event)
        if self.is_up:
            self._schedule_tick()

    def kill(self) -> None:
        """SIGKILL, now or in the middle of a step; it is started again after a while."""
        if not self.is_up or self._waiting is not None or self._effects_left is not None:
            return
        if self._world.agenda.chance(0.6):
            self._effects_left = self._world.agenda.dice.randrange(0, 8)
        else:
            self._die()

    def _die(self) -> None:
        world = self._world
        world.trace("coordinator", "IS KILLED")
        world.ledger.seen["coordinator killed"] += 1
        self.is_up = False
        self._effects_left = None
        self._tick_at = float("inf")
        world.control.on_coordinator_death()
        away_s = world.agenda.dice.choice((0.01, 0.3, 2.0, 6.0, 15.0))
        world.agenda.after(away_s, self._start)

    def _start(self) -> None:
        """Start again: with the journal, with most of it, or with none."""
        world = self._world
        dice = world.agenda.dice
        self._starts += 1
        run = self.machine.run
        has_journal = dice.random() < 0.6
        unsaved = dice.randrange(_UNSAVED_MAX) if dice.random() < 0.5 else 0
        world.trace("coordinator", f"IS STARTED, journal {has_journal}, unsaved {unsaved}")
        path = "with its journal" if has_journal else "without a journal"
        world.ledger.seen[f"coordinator started again {path}"] += 1
        self.is_up = True
        if has_journal:
            journal = self._journal[: max(0, len(self._journal) - unsaved)]
            self._journal = journal
            self.machine = Coordinator(
                run_id=run.run_id,
                incarnation=run.incarnation + 1,
                secret=_SECRET,
                options=self._options,
                check_every=1,
                memory=replay(journal),
            )
        else:
            self._journal = []
            self.machine = Coordinator(
                run_id=bytes([self._starts] * 16),
                incarnation=dice.choice((1, run.incarnation + 1, run.incarnation + 9)),
                secret=b"another secret %4d" % self._starts,
                options=self._options,
                check_every=1,
                is_new=False,
            )
        self.step(Tick())


def replay(journal: list[Save | Forget]) -> Memory:
    """What a journal holds after these effects."""
    peers: dict[PeerId, SavedPeer] = {}
    groups: dict[int, SavedGroup] = {}
    for effect in journal:
        if isinstance(effect, Forget):
            peers.pop(effect.peer, None)
        elif isinstance(effect.record, SavedPeer):
            peers[effect.record.id] = effect.record
        elif isinstance(effect.record, SavedGroup):
            groups[effect.record.number] = effect.record
    return Memory(peers=tuple(peers.values()), groups=tuple(groups.values()))
