"""A simulated process: a peer's machine, its runner, and the program that calls it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringhaul.core.peer.machine import Peer, PeerOptions
from ringhaul.core.peer.steps import (
    AdmitCalled,
    BeginTransfer,
    CallGivenUp,
    CloseCalled,
    CollectiveCalled,
    Complete,
    Dial,
    DropTransfer,
    Effect,
    Event,
    Fail,
    FollowSyncPlan,
    ForgetKey,
    Joined,
    MakeLinks,
    Started,
    Stop,
    UseRing,
    View,
)
from ringhaul.core.steps import Close, Log, Received, Send, Tick
from ringhaul.errors import (
    CallTimeout,
    CollectiveAborted,
    MismatchError,
    RinghaulError,
    StateError,
)
from ringhaul.ids import CallId, Generation, OnLoss, OpKey, PeerId
from ringhaul.testing.application import ROUNDS_MAX, Application, Request, Result, Script
from ringhaul.testing.control_plane import Connection
from ringhaul.testing.data_plane import Attempt, Ring, Value
from ringhaul.testing.ledger import OracleError
from ringhaul.testing.state_plane import Cells
from ringhaul.wire.coordinator_messages import Opened, Outcome, Proposal
from ringhaul.wire.records import Address, CollectiveKind

if TYPE_CHECKING:
    from ringhaul.testing.simulator import World


_WITHOUT_VALUE = (CollectiveKind.BARRIER, CollectiveKind.SYNC_STATE)


@dataclass(slots=True, kw_only=True)
class _Call:
    place: int
    request: Request
    #: The generation that admitted the members; keys are counted from it.
    era: int
    key: OpKey | None


class Process:
    """One process, from its start to its end."""

    def __init__(self, world: World, *, index: int, group: int, min_world_size: int) -> None:
        self.index = index
        self.group = group
        self.name = f"p{index}"
        self.machine = Peer(
            PeerOptions(
                coordinator="simulated",
                name=self.name,
                group=group,
                addresses=(Address(f"192.0.2.{index}", 1000),),
                min_world_size=min_world_size,
                coordinator_grace_s=40.0,
            ),
            check_every=1,
        )
        self.is_alive = True
        self.is_paused = False
        self.is_member = False
        self.connection: Connection | None = None
        self.proposal: Proposal | None = None
        #: Of each generation that was proposed to it.
        self.rings: dict[Generation, Ring] = {}
        #: Operations whose data may move, by call; results that are whole; states served.
        self.posted: dict[CallId, Attempt] = {}
        self.results: dict[CallId, Value] = {}
        #: Revision and content after the last sync that was committed.
        self.elected: tuple[int, Cells] = (0, ())
        self._elected_revision = 0
        #: It dies once it has performed so many effects more.
        self.effects_left: int | None = None
        self.app = Application(self, seed=world.seed, admits_twice=world.admits_twice)
        self._world = world
        self._waiting: list[Event] = []
        self._tick_at = float("inf")
        self._era = 0
        self._generation_seen = 0
        self._ordinals: Counter[str | None] = Counter()
        self._numbers = itertools.count(1)
        self._calls: dict[CallId, _Call] = {}
        self._results: list[Result | None] = []
        self._script: Script | None = None

    @property
    def peer_id(self) -> PeerId:
        """Its id, once the coordinator has given it one."""
        return self.machine.state.peer_id

    # -- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect."""
        self.deliver(Started())

    def pause(self, duration_s: float) -> None:
        """SIGSTOP, then SIGCONT: meanwhile all that happens waits."""
        self.is_paused = True
        self._world.agenda.after(duration_s, self._wake)

    def _wake(self) -> None:
        self.is_paused = False
        waiting, self._waiting = self._waiting, []
        if self._world.agenda.chance(0.5):
            waiting.insert(0, Tick())
        for event in waiting:
            # what was still unread on a connection is gone once it is closed
            if not isinstance(event, Received) or self._world.control.is_open(event.link):
                self.deliver(event)
        self._schedule_tick()

    def leave(self) -> None:
        """The program closes its communicator."""
        self.deliver(CloseCalled())

    def die(self, why: str) -> None:
        """The process ends, of its own will or not."""
        if self.is_alive:
            self._world.trace(self.name, f"ENDS: {why}")
            self.is_alive = False
            if self.connection is not None:
                self._world.control.end_from_peer(self.connection, "process ended")
            self._world.data.on_death(self)

    # -- the machine --------------------------------------------------------------------------

    def deliver(self, event: Event) -> None:
        """Give the machine an event, now or when the process runs again."""
        if not self.is_alive:
            return
        if self.is_paused:
            self._waiting.append(event)
            return
        self._world.trace(self.name, event)
        is_called = isinstance(event, CollectiveCalled)
        effects = self.machine.step(event, self._world.agenda.now)
        if isinstance(event, Received) and isinstance(event.envelope.message, Opened):
            self._note_opened(event.envelope.message)
        for effect in effects:
            if self.effects_left is not None:
                self.effects_left -= 1
                if self.effects_left < 0:
                    self._world.ledger.seen["killed between two effects"] += 1
                    self.die("killed between two effects")
            if not self.is_alive:
                return
            if is_called and isinstance(effect, Fail) and effect.view is not None:
                self._world.ledger.seen["came to a key that had failed"] += 1
            self._perform(effect)
        self._schedule_tick()

    def _note_opened(self, message: Opened) -> None:
        if message.generation <= self._generation_seen:
            raise OracleError(f"{self.name}: generation {message.generation} again")
        self._generation_seen = message.generation
        view = View(
            generation=message.generation,
            ring_order=message.ring_order,
            counts=message.counts,
            joined=message.joined,
        )
        self._world.ledger.record_opening(self.name, self.group, view)
        if message.admission:
            self._era = message.generation
            self._ordinals.clear()

    def _schedule_tick(self) -> None:
        at = self.machine.next_deadline()
        if at < self._tick_at:
            self._tick_at = at
            self._world.agenda.at(at, lambda: self._tick(at))

    def _tick(self, at: float) -> None:
        if not self.is_alive or self.is_paused or at != self._tick_at:
            if at == self._tick_at:
                self._tick_at = float("inf")
            return
        self._tick_at = float("inf")
        if self.machine.next_deadline() <= self._world.agenda.now:
            self.deliver(Tick())
        else:
            self._schedule_tick()

    def _perform(self, effect: Effect) -> None:
        world = self._world
        match effect:
            case Dial():
                world.control.dial(self)
            case Send(link, envelope):
                world.control.send_up(link, envelope)
            case Close(link, reason):
                world.control.end_from_peer(world.control.connections[link], reason)
            case Log(text):
                world.trace(self.name, f"log: {text}")
            case MakeLinks(proposal):
                world.data.make_links(self, proposal)
            case UseRing() | ForgetKey():
                pass
            case BeginTransfer():
                value = self._calls[effect.call].request.value
                world.data.begin(self, effect, value)
            case DropTransfer(call):
                if self.results.pop(call, None) is not None:
                    world.ledger.seen["finished, then aborted"] += 1
                world.data.drop(self, call)
                world.states.drop(self, call)
            case FollowSyncPlan(_, plan):
                self._elected_revision = plan.revision
                world.states.follow(self, effect)
            case Complete() | Fail():
                self._on_ended(effect)
            case Joined(view):
                self._on_joined(view)
            case Stop(error):
                self.die(f"stopped: {error!r}")

    # -- the program --------------------------------------------------------------------------

    def _on_joined(self, view: View) -> None:
        assert not self.is_member
        assert self.peer_id in view.joined
        self.is_member = True
        self._script = self.app.script(admits_first=self._world.agenda.chance(0.5))
        self._think(lambda script: next(script))

    def _think(self, go_on: Callable[[Script], list[Request]]) -> None:
        script = self._script
        assert script is not None

        def act() -> None:
            if self.is_alive and self.is_paused:
                self._world.agenda.after(0.1, act)
            elif self.is_alive:
                self._call_all(go_on(script))

        agenda = self._world.agenda
        slow = agenda.chance(0.05 if self._world.is_faulty else 0.0)
        agenda.after(
            agenda.between(0.3, 2.5) if slow else agenda.between(*self._world.think_s), act
        )

    def _call_all(self, batch: list[Request]) -> None:
        self._results = [None] * len(batch)
        for place, request in enumerate(batch):
            self._call(place, request)

    def _call(self, place: int, request: Request) -> None:
        agenda, is_faulty = self._world.agenda, self._world.is_faulty
        call = CallId(next(self._numbers))
        if self._world.admits_twice and request.signature is None and not self._ordinals:
            is_faulty = False  # whether its end was for all would be a guess
        timeout_s = agenda.between(0.02, 4.0) if is_faulty and agenda.chance(0.03) else None
        if is_faulty and agenda.chance(0.01):
            outcome = agenda.dice.choice((Outcome.INTERRUPTED, Outcome.FAILED, Outcome.UNFIT))
            given_up = CallGivenUp(call, outcome, "Ctrl-C, or a NaN")
            agenda.after(agenda.between(0.0, 0.3), lambda: self.deliver(given_up))
        if request.signature is None:
            self._calls[call] = _Call(place=place, request=request, era=self._era, key=None)
            self.deliver(AdmitCalled(call, timeout_s))
            return
        key = OpKey(request.tag, self._ordinals[request.tag])
        self._ordinals[request.tag] += 1
        self._calls[call] = _Call(place=place, request=request, era=self._era, key=key)
        if request.state is not None:
            self._world.states.begin(self, call, request.cells)
        self.deliver(
            CollectiveCalled(
                call=call,
                tag=request.tag,
                signature=request.signature,
                state=request.state,
                timeout_s=timeout_s,
            )
        )

    def _on_ended(self, effect: Complete | Fail) -> None:
        call = self._calls.pop(effect.call)
        self._world.data.drop(self, effect.call)
        value = self.results.pop(effect.call, ())
        if call.request.state is not None:
            is_committed = isinstance(effect, Complete)
            ended = self._world.states.end(self, effect.call, is_committed=is_committed)
            if is_committed:
                self.elected = (self._elected_revision, ended[1])
                value = ((PeerId("the content"), int.from_bytes(ended[0], "big")),)
        error = effect.error if isinstance(effect, Fail) else None
        result = Result(effect.view, value, error)
        if call.key is not None:
            self._record(call, call.key, result)
        elif error is not None:
            self._check_error(error, result)
        if isinstance(effect, Complete) and effect.attempts > 1:
            self._world.ledger.seen["committed after several attempts"] += 1
        self._results[call.place] = result
        results = [result for result in self._results if result is not None]
        if len(results) == len(self._results):
            self._think(lambda script: script.send(results))

    def _record(self, call: _Call, key: OpKey, result: Result) -> None:
        world = self._world
        outcome: tuple[object, ...]
        if result.error is not None:
            self._check_error(result.error, result)
            self._check_retried(call, result.error, result)
            outcome = ("failed", type(result.error), result.view)
        else:
            outcome = ("committed", result.view, result.value)
            self._check_value(call, result)
        if self._era != call.era:
            raise OracleError(f"{self.name}: {key} outlived its admission")
        world.ledger.record_outcome(self.name, self.group, call.era, key, outcome)

    def _check_value(self, call: _Call, result: Result) -> None:
        assert result.view is not None
        assert call.request.signature is not None
        if any(not self._world.by_id[p].is_alive for p in result.view.ring_order):
            self._world.ledger.seen["committed with a contributor that is gone"] += 1
        own, root = call.request.value, call.request.signature.root
        if root is not None:
            wanted = self._world.by_id[root].index * ROUNDS_MAX + own % ROUNDS_MAX
            if result.value != ((root, wanted),) or root not in result.view.ring_order:
                raise OracleError(f"{self.name}: {root} is the root of {result}")
        elif call.request.signature.kind not in _WITHOUT_VALUE:
            if tuple(p for p, _ in result.value) != result.view.ring_order:
                raise OracleError(f"{self.name}: {result.value} by {result.view.ring_order}")
            if dict(result.value)[self.peer_id] != own:
                raise OracleError(f"{self.name}: its own value is not in {result.value}")

    def _check_retried(self, call: _Call, error: RinghaulError, result: Result) -> None:
        """A loss is no error under `retry`, unless nobody can do what the lost one did."""
        signature = call.request.signature
        if not isinstance(error, CollectiveAborted) or "was lost" not in str(error):
            return
        assert signature is not None
        assert result.view is not None
        is_root = error.peers == (signature.root,)
        if signature.root in result.view.ring_order and signature.on_loss is OnLoss.RETRY:
            raise OracleError(f"{self.name}: {signature.root} is a member, but {error}")
        if not is_root and signature.on_loss is OnLoss.RETRY:
            raise OracleError(f"{self.name}: {signature} was not run again: {error}")
        if is_root:
            when = "before the call" if "before the call" in str(error) else "in the middle"
            self._world.ledger.seen[f"root lost {when}"] += 1

    def _check_error(self, error: RinghaulError, result: Result) -> None:
        world = self._world
        if result.is_below_minimum:
            world.ledger.seen["below min_world_size"] += 1
        allowed = isinstance(error, (CollectiveAborted, CallTimeout))
        allowed = allowed or (isinstance(error, MismatchError) and world.has_mismatch)
        allowed = allowed or (isinstance(error, StateError) and "could be reached" in str(error))
        allowed = allowed or (
            isinstance(error, StateError) and "the last member that" in str(error)
        )
        if "the last member that" in str(error):
            world.ledger.seen["state lost with its last holder"] += 1
        allowed = allowed or "or a NaN" in str(error)
        allowed = allowed or ("results of" in str(error) and world.spoils_results)
        if not allowed:
            raise OracleError(f"{self.name}: unexpected {error!r}")
