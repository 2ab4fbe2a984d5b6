"""One transition: a world that is being changed, by what the machines say.

Carries out effects in the model of the network and of the data links; hands what callers get
to the oracles.
"""

from collections.abc import Callable

from ringhaul.core.peer.steps import (
    BeginTransfer,
    Complete,
    Dial,
    DropTransfer,
    Fail,
    Joined,
    MakeLinks,
    Stop,
)
from ringhaul.core.steps import Close, Log, Tick
from ringhaul.ids import CallId, LinkId
from ringhaul.testing.explore import oracles
from ringhaul.testing.explore.effects import Op, Sent
from ringhaul.testing.explore.lab import Lab
from ringhaul.testing.explore.world import (
    DIALLED,
    END,
    NO_CELL,
    Attempt,
    Connection,
    Life,
    Notice,
    Process,
    Ring,
    World,
    kept_if,
)
from ringhaul.wire.coordinator_messages import Opened, Outcome, Proposal, Verdict

Tell = Callable[[str, object], None]
#: What others see of a step: a process may die after each.
VISIBLE = (Sent, BeginTransfer)


class Draft:
    """A world between two states."""

    def __init__(self, lab: Lab, world: World, tell: Tell | None = None) -> None:
        self.lab = lab
        self._tell = tell
        self._world = world
        self.coordinator = world.coordinator
        self.processes = list(world.processes)
        self.connections = {connection.link: connection for connection in world.connections}
        self.links = world.links
        self.notices = world.notices
        self.posted = world.posted
        self.fault = world.fault
        self.waited = 0
        #: Effects that others see, done in this transition; a process dies after so many.
        self.visible = 0
        self.dies_after: int | None = None
        self.admitted = world.admitted
        self.verdicts = world.verdicts
        self.outcomes = world.outcomes
        self.views = world.views
        #: Heartbeats are exchanged only while time passes, and at once.
        self._time_passes = False

    def done(self) -> World:
        """The state that was reached."""
        connections = [self.connections[link] for link in sorted(self.connections)]
        return World(
            coordinator=self.coordinator,
            processes=tuple(self.processes),
            connections=tuple(c for c in connections if c.peer_open or c.coordinator_open),
            links=self.links,
            notices=kept_if(self.notices, self._is_news),
            posted=oracles.still_needed(self),
            fault=self.fault,
            waited=self.waited,
            admitted=self.admitted,
            verdicts=self.verdicts,
            outcomes=oracles.unheard_outcomes(self),
            views=oracles.unheard_views(self),
        )

    def trace(self, who: str, what: object) -> None:
        """Tell what happens, if anybody listens."""
        if self._tell is not None:
            self._tell(who, what)

    # -- the machines -------------------------------------------------------------------------

    def step_coordinator(self, event: int, passed_s: float = 0.0) -> None:
        """Give the coordinator an event, and do what it says."""
        cell, ops = self.lab.coordinators.step(self.coordinator, event, passed_s)
        self.coordinator = cell
        for op in ops:
            match op:
                case Sent(link, message, is_heartbeat=True):
                    self._beat_down(link, message)
                case Sent(link, message):
                    self._note_sent(message)
                    self._put_down(link, message)
                case Close(link):
                    self._put_down(link, END)
                    self.connections[link] = self.connections[link]._replace(
                        coordinator_open=False, up=()
                    )
                case Log(text):
                    self.trace("coordinator", f"log: {text}")
                    oracles.check_log(self, text)
                case _:
                    raise AssertionError(f"a coordinator does not {op}")

    def step_peer(self, place: int, event: int, passed_s: float = 0.0) -> None:
        """Give a process an event, and do what its machine says while it lives."""
        cell, ops = self.lab.peers.step(self.processes[place].cell, event, passed_s)
        process = self.processes[place]
        if cell != process.cell:
            id_ = process.id or self.lab.peers.machine(cell).state.peer_id
            self.processes[place] = process._replace(cell=cell, id=id_)
        for op in ops:
            if isinstance(op, VISIBLE):
                if self.visible == self.dies_after:
                    self.kill(place)
                    return
                self.visible += 1
            if self.processes[place].life is Life.ALIVE:
                self._perform(place, op)

    def note_opened(self, place: int, message: Opened) -> None:
        """A process hears that a generation is open."""
        oracles.record_opening(self, place, message)
        if message.admission:
            self.change(place, era=message.generation, ordinals=())

    def tell_message(self, who: str, whose: str, message: int) -> None:
        """Tell of a message that arrives."""
        if self._tell is not None:
            what = "END" if message == END else self.lab.teller.envelope(message).message
            self._tell(who, f"<- {whose}: {what}")

    def _note_sent(self, message: int) -> None:
        match self.lab.teller.envelope(message).message:
            case Verdict(outcome=outcome) as verdict if outcome is not Outcome.ABORTED:
                oracles.record_verdict(self, verdict)
            case Opened(admission=True, generation=generation):
                if generation > self.admitted:
                    self.admitted = generation
                    self.verdicts = frozenset()
            case _:
                pass

    def _perform(self, place: int, op: Op) -> None:
        match op:
            case Sent(link, message, is_heartbeat=True):
                self._beat_up(link, message)
            case Sent(link, message):
                self.trace(f"p{place}", f"says {self.lab.teller.envelope(message).message}")
                self._put_up(link, message)
            case Close(link, reason):
                oracles.check_close(self, place, reason)
                self.close_from_peer(link)
            case Dial():
                self.change(place, is_dialling=True)
            case MakeLinks(proposal):
                self._make_links(place, proposal)
            case BeginTransfer():
                attempt = Attempt(op.generation, op.key)
                self.posted |= {(attempt, place)}
                self.change_call(place, op.call, attempt=attempt, got=None)
            case DropTransfer(call):
                self.change_call(place, call, attempt=None, got=None)
            case Joined():
                self.change(place, is_member=True)
            case Complete() | Fail():
                self.trace(f"p{place}", f"call ends: {op}")
                self._on_ended(place, op)
            case Stop(error):
                self.trace(f"p{place}", f"stops: {error!r}")
                oracles.check_stop(self, place, error)
                self._end(place, Life.STOPPED)
            case Log(text):
                self.trace(f"p{place}", f"log: {text}")

    def _on_ended(self, place: int, effect: Complete | Fail) -> None:
        process = self.processes[place]
        call = next(call for call in process.calls if call.id == effect.call)
        self.change(place, calls=tuple(c for c in process.calls if c is not call))
        oracles.record_outcome(self, place, call, effect)

    def change(self, place: int, **facts: object) -> None:
        """Set facts of a process."""
        self.processes[place] = self.processes[place]._replace(**facts)  # type: ignore[arg-type]

    def change_call(self, place: int, call: CallId, **facts: object) -> None:
        calls = self.processes[place].calls
        self.change(
            place,
            calls=tuple(
                c._replace(**facts) if c.id == call else c  # type: ignore[arg-type]
                for c in calls
            ),
        )

    # -- control connections ------------------------------------------------------------------

    def _put_up(self, link: LinkId, message: int) -> None:
        connection = self.connections[link]
        if not connection.up_ended and connection.peer_open:
            is_read = connection.coordinator_open
            self.connections[link] = connection._replace(
                up=(*connection.up, message) if is_read else (), up_ended=message == END
            )

    def _put_down(self, link: LinkId, message: int) -> None:
        connection = self.connections[link]
        if not connection.down_ended and connection.coordinator_open:
            is_read = connection.peer_open
            self.connections[link] = connection._replace(
                down=(*connection.down, message) if is_read else (), down_ended=message == END
            )

    def close_from_peer(self, link: LinkId) -> None:
        """A process closes a connection, or its kernel does: what it sent before arrives."""
        self._put_up(link, END)
        self.connections[link] = self.connections[link]._replace(peer_open=False, down=())

    def _beat_up(self, link: LinkId, message: int) -> None:
        connection = self.connections[link]
        if self._time_passes and connection.coordinator_open and not connection.up_ended:
            self.step_coordinator(self.lab.received(link, message, at_peer=False))

    def _beat_down(self, link: LinkId, message: int) -> None:
        connection = self.connections[link]
        if self._time_passes and connection.peer_open and not connection.down_ended:
            self.step_peer(connection.place, self.lab.received(link, message, at_peer=True))

    # -- data links ---------------------------------------------------------------------------

    def _make_links(self, place: int, proposal: Proposal) -> None:
        place_of = self.lab.place_of
        after = place_of(proposal.next.peer) if proposal.next else None
        before = place_of(proposal.previous.peer) if proposal.previous else None
        ring = Ring(proposal.generation, proposal.ring_order, after, before)
        self.change(place, ring=ring, is_linking=True, waited=0)
        for pair in [pair for pair in self.links if place in pair]:
            sender, receiver = pair
            if (sender == place and receiver != after) or (receiver == place and sender != before):
                self.drop_link(pair, told=[p for p in pair if p != place])

    def drop_link(self, pair: tuple[int, int], told: list[int]) -> None:
        """A link ends; these will find it broken."""
        self.links -= {pair}
        self.notices |= {Notice(who, pair) for who in told}

    def _is_news(self, notice: Notice) -> bool:
        process = self.processes[notice.who]
        sender, receiver = notice.pair
        if process.life is not Life.ALIVE or process.ring is None or notice.pair in self.links:
            return False
        if notice.who == sender:
            return process.ring.next == receiver
        return process.ring.previous == sender

    # -- ends ---------------------------------------------------------------------------------

    def kill(self, place: int) -> None:
        """SIGKILL: the kernel closes all."""
        self.trace(f"p{place}", "IS KILLED")
        self.fault = ("kill", place, place)
        self._end(place, Life.DEAD)

    def _end(self, place: int, life: Life) -> None:
        self.processes[place] = Process(NO_CELL, self.processes[place].id, life)
        for connection in list(self.connections.values()):
            if connection.place == place and connection.peer_open:
                self.close_from_peer(connection.link)
        for pair in [pair for pair in self.links if place in pair]:
            self.drop_link(pair, told=[p for p in pair if p != place])

    def vanish(self, place: int) -> None:
        """A power failure: nobody is told."""
        self.processes[place] = Process(NO_CELL, self.processes[place].id, Life.VANISHED)
        for connection in list(self.connections.values()):
            if connection.place == place:
                self.swallow(connection)

    def swallow(self, connection: Connection) -> None:
        """Nothing arrives any more on this connection, and nobody is told."""
        is_half_made = DIALLED in connection.down
        self.connections[connection.link] = connection._replace(
            up=(),
            down=(DIALLED,) if is_half_made else (),
            up_ended=True,
            down_ended=True,
        )

    # -- time ---------------------------------------------------------------------------------

    def pass_time(self) -> None:
        """One second: all that run tick, heartbeats go both ways."""
        self._time_passes = True
        self.step_coordinator(self.lab.coordinators.event(Tick()), 1.0)
        tick = self.lab.peers.event(Tick())
        for place, process in enumerate(self.processes):
            if process.life is Life.ALIVE:
                self.change(place, waited=min(process.waited + 1, 6))
                self.step_peer(place, tick, 1.0)
        self._time_passes = False
        self.waited = self._world.waited + 1
