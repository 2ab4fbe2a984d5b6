"""What can happen next in a small world, and what comes of it."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ringhaul.core.coordinator.machine import LinkAccepted
from ringhaul.core.peer.steps import (
    AdmitCalled,
    CallGivenUp,
    CloseCalled,
    CollectiveCalled,
    DialFailed,
    Dialled,
    LinkBroken,
    LinkUp,
    Started,
    TransferDone,
)
from ringhaul.ids import CallId, LinkId, OpKey
from ringhaul.testing.explore import oracles
from ringhaul.testing.explore.draft import Draft, Tell
from ringhaul.testing.explore.lab import Lab
from ringhaul.testing.explore.world import (
    DIALLED,
    END,
    FAILED,
    Call,
    Connection,
    Life,
    Notice,
    Process,
    World,
)
from ringhaul.wire.coordinator_messages import Opened, Outcome

#: Seconds after which a dial is given up, and after which a peer misses its previous rank.
DIAL_S = 3
MISSED_S = 6


class Action(NamedTuple):
    """One thing that happens: its name, and to whom. See the `_do_` of this name."""

    name: str
    args: tuple[int, ...] = ()
    #: Time does not pass while it can happen.
    is_urgent: bool = True
    #: A process is killed in the middle of it, when so much of its step is out.
    dies_after: int | None = None

    def __str__(self) -> str:
        """As a trace tells it."""
        cut = "" if self.dies_after is None else f", killed after {self.dies_after} effects"
        return f"{self.name} {' '.join(map(str, self.args))}{cut}"


def enabled(lab: Lab, world: World) -> list[Action]:
    """All that can happen in this state; nothing if it is an end."""
    actions = list(_enabled_now(lab, world))
    if not any(action.is_urgent for action in actions):
        if oracles.is_settled(lab, world):
            return [*_faults(lab, world)] if world.fault is None else []
        actions.append(Action("pass_time"))
    if world.fault is None:
        actions += _faults(lab, world)
    return actions


def _enabled_now(lab: Lab, world: World) -> Iterator[Action]:
    for connection in world.connections:
        if connection.up and connection.coordinator_open:
            yield Action("deliver_up", (connection.link,))
        if connection.down and connection.peer_open:
            yield Action("deliver_down", (connection.link,))
    for place, process in enumerate(world.processes):
        if process.life is Life.ABSENT:
            yield Action("start", (place,))
        if process.life is not Life.ALIVE:
            continue
        if process.is_dialling:
            yield Action("connect", (place,))
        is_free = process.is_member and not process.calls
        if is_free and process.steps < len(lab.scripts[place]):
            yield Action("call", (place,))
        yield from _enabled_links(world, place, process)
        yield from _enabled_transfers(lab, world, place, process)
    for notice in sorted(world.notices):
        yield Action("notice", (notice.who, *notice.pair))


def _enabled_links(world: World, place: int, process: Process) -> Iterator[Action]:
    ring = process.ring
    if ring is None:
        return
    if process.is_linking:
        if ring.next is None or (place, ring.next) in world.links:
            yield Action("link_up", (place,))
        else:
            after = world.processes[ring.next]
            expects = after.ring is not None and after.ring.previous == place
            is_cut = world.fault == ("cut", place, ring.next)
            if after.life in (Life.DEAD, Life.STOPPED):
                yield Action("refused", (place, ring.next))
            elif after.life is Life.ALIVE and expects and not is_cut:
                yield Action("link_up", (place,))
            elif process.waited >= DIAL_S:
                yield Action("unreachable", (place, ring.next))
    before = ring.previous
    if before is not None and (before, place) not in world.links and process.waited >= MISSED_S:
        yield Action("missed", (place, before))


def _enabled_transfers(lab: Lab, world: World, place: int, process: Process) -> Iterator[Action]:
    for call in process.calls:
        if call.attempt is None or call.got is not None or process.ring is None:
            continue
        order = process.ring.order
        places = [lab.place_of(peer_id) for peer_id in order]
        if all((call.attempt, p) in world.posted for p in places):
            links = zip(places, places[1:] + places[:1], strict=True)
            is_intact = all(_moves(world, other, call) for other in places) and (
                len(places) == 1 or all(link in world.links for link in links)
            )
            yield Action("transfer", (place, call.id), is_urgent=is_intact)


def _moves(world: World, place: int, call: Call) -> bool:
    process = world.processes[place]
    return process.life is Life.ALIVE and any(c.attempt == call.attempt for c in process.calls)


def _faults(lab: Lab, world: World) -> Iterator[Action]:
    kinds = lab.scenario.faults
    for place, process in enumerate(world.processes):
        if process.life is not Life.ALIVE:
            continue
        for name in ("kill", "vanish", "leave"):
            if name in kinds:
                yield Action(name, (place,), is_urgent=False)
        if "interrupt" in kinds:
            for call in process.calls:
                yield Action("interrupt", (place, call.id), is_urgent=False)
    for connection in world.connections:
        if not connection.peer_open or not connection.coordinator_open:
            continue
        if "swallow" in kinds:
            yield Action("swallow", (connection.link,), is_urgent=False)
        if "reset" in kinds:
            for kept in range(4):  # what is under way: nothing, one direction, both
                is_same = (kept & 1 and not connection.up) or (kept & 2 and not connection.down)
                if not is_same:
                    yield Action("reset", (connection.link, kept), is_urgent=False)
    for pair in sorted(world.links):
        if "break" in kinds:
            for told in (1, 2, 3):  # the sender, the receiver, both
                yield Action("break", (*pair, told), is_urgent=False)
        if "cut" in kinds:
            yield Action("cut", pair, is_urgent=False)


def apply(lab: Lab, world: World, action: Action, tell: Tell | None = None) -> Draft:
    """Let it happen.

    Raises:
        Violation: a promise was broken.
        InvariantError: a machine found itself broken.
    """
    draft = Draft(lab, world, tell)
    draft.dies_after = action.dies_after
    _DO[action.name](draft, *action.args)
    return draft


# -- what runs by itself ----------------------------------------------------------------------


def _do_start(draft: Draft, place: int) -> None:
    draft.change(place, life=Life.ALIVE)
    draft.step_peer(place, draft.lab.peers.event(Started()))


def _do_connect(draft: Draft, place: int) -> None:
    dials = draft.processes[place].dials + 1
    link = LinkId(100 * (place + 1) + dials)
    draft.change(place, is_dialling=False, dials=dials)
    draft.connections[link] = Connection(link, place, down=(DIALLED,))
    accepted = LinkAccepted(link, f"192.0.2.{place}")
    draft.step_coordinator(draft.lab.coordinators.event(accepted))


def _do_deliver_up(draft: Draft, link: LinkId) -> None:
    connection = draft.connections[link]
    message, *rest = connection.up
    is_open = message != END
    draft.connections[link] = connection._replace(up=tuple(rest), coordinator_open=is_open)
    draft.tell_message("coordinator", f"p{connection.place}", message)
    draft.step_coordinator(draft.lab.received(link, message, at_peer=False))


def _do_deliver_down(draft: Draft, link: LinkId) -> None:
    connection = draft.connections[link]
    message, *rest = connection.down
    is_open = message not in (END, FAILED)
    draft.connections[link] = connection._replace(down=tuple(rest), peer_open=is_open)
    place = connection.place
    if message == DIALLED:
        draft.step_peer(place, draft.lab.peers.event(Dialled(link)))
        return
    if message == FAILED:
        draft.step_peer(place, draft.lab.peers.event(DialFailed("reset")))
        return
    draft.tell_message(f"p{place}", "coordinator", message)
    if message != END:
        opened = draft.lab.teller.envelope(message).message
        if isinstance(opened, Opened):
            draft.note_opened(place, opened)
    draft.step_peer(place, draft.lab.received(link, message, at_peer=True))


def _do_call(draft: Draft, place: int) -> None:
    process = draft.processes[place]
    requests = draft.lab.scripts[place][process.steps]
    draft.change(place, steps=process.steps + 1)
    for request in requests:
        process = draft.processes[place]
        if process.life is not Life.ALIVE:
            return
        call = CallId(process.call_count)
        event: AdmitCalled | CollectiveCalled
        if request.signature is None:
            key = None
            event = AdmitCalled(call)
        else:
            ordinals = dict(process.ordinals)
            key = OpKey(request.tag, ordinals.get(request.tag, 0))
            ordinals[request.tag] = key.ordinal + 1
            draft.change(place, ordinals=tuple(ordinals.items()))
            event = CollectiveCalled(call=call, tag=request.tag, signature=request.signature)
        calls = (*process.calls, Call(call, key))
        draft.change(place, call_count=process.call_count + 1, calls=calls)
        draft.trace(f"p{place}", f"calls {request.signature or 'admit'}")
        draft.step_peer(place, draft.lab.peers.event(event))


def _do_link_up(draft: Draft, place: int) -> None:
    ring = draft.processes[place].ring
    assert ring is not None
    if ring.next is not None:
        draft.links |= {(place, ring.next)}
    draft.change(place, is_linking=False)
    draft.step_peer(place, draft.lab.peers.event(LinkUp(ring.generation)))


def _do_refused(draft: Draft, place: int, after: int) -> None:
    draft.change(place, is_linking=False)
    _tell_broken(draft, place, after)


def _do_missed(draft: Draft, place: int, before: int) -> None:
    draft.change(place, waited=0)
    _tell_broken(draft, place, before)


def _do_notice(draft: Draft, who: int, sender: int, receiver: int) -> None:
    draft.notices -= {Notice(who, (sender, receiver))}
    _tell_broken(draft, who, receiver if who == sender else sender)


def _tell_broken(draft: Draft, place: int, other: int) -> None:
    is_gone = draft.processes[other].life in (Life.DEAD, Life.STOPPED)
    reason = "connection refused" if is_gone else "reset or timed out"
    broken = LinkBroken(neighbour=draft.processes[other].id, refused=is_gone, reason=reason)
    draft.step_peer(place, draft.lab.peers.event(broken))


def _do_transfer(draft: Draft, place: int, number: int) -> None:
    process = draft.processes[place]
    call = next(call for call in process.calls if call.id == number)
    assert call.attempt is not None
    assert process.ring is not None
    draft.change_call(place, call.id, got=process.ring.order)
    done = TransferDone(call.id, call.attempt.generation, bytes(16))
    draft.step_peer(place, draft.lab.peers.event(done))


# -- faults -----------------------------------------------------------------------------------


def _do_kill(draft: Draft, place: int) -> None:
    draft.kill(place)


def _do_vanish(draft: Draft, place: int) -> None:
    draft.fault = ("vanish", place, place)
    draft.trace(f"p{place}", "VANISHES")
    draft.vanish(place)


def _do_leave(draft: Draft, place: int) -> None:
    draft.fault = ("leave", place, place)
    draft.step_peer(place, draft.lab.peers.event(CloseCalled()))


def _do_interrupt(draft: Draft, place: int, call: int) -> None:
    draft.fault = ("interrupt", place, place)
    given_up = CallGivenUp(CallId(call), Outcome.INTERRUPTED, "Ctrl-C")
    draft.step_peer(place, draft.lab.peers.event(given_up))


def _do_swallow(draft: Draft, link: LinkId) -> None:
    connection = draft.connections[link]
    draft.fault = ("swallow", connection.place, connection.place)
    draft.swallow(connection)


def _do_reset(draft: Draft, link: LinkId, kept: int) -> None:
    connection = draft.connections[link]
    draft.fault = ("reset", connection.place, connection.place)
    is_half_made = DIALLED in connection.down and not kept & 2
    draft.connections[link] = connection._replace(
        up=(*(connection.up if kept & 1 else ()), END),
        down=(*(connection.down if kept & 2 else ()), FAILED if is_half_made else END),
        up_ended=True,
        down_ended=True,
    )


def _do_break(draft: Draft, sender: int, receiver: int, told: int) -> None:
    draft.fault = ("break", sender, receiver)
    ends = [p for bit, p in ((1, sender), (2, receiver)) if told & bit]
    draft.drop_link((sender, receiver), ends)


def _do_cut(draft: Draft, sender: int, receiver: int) -> None:
    draft.fault = ("cut", sender, receiver)
    draft.drop_link((sender, receiver), [sender, receiver])


_DO: dict[str, Callable[..., None]] = {
    "start": _do_start,
    "connect": _do_connect,
    "deliver_up": _do_deliver_up,
    "deliver_down": _do_deliver_down,
    "call": _do_call,
    "link_up": _do_link_up,
    "refused": _do_refused,
    "unreachable": _do_refused,
    "missed": _do_missed,
    "notice": _do_notice,
    "transfer": _do_transfer,
    "pass_time": Draft.pass_time,
    "kill": _do_kill,
    "vanish": _do_vanish,
    "leave": _do_leave,
    "interrupt": _do_interrupt,
    "swallow": _do_swallow,
    "reset": _do_reset,
    "break": _do_break,
    "cut": _do_cut,
}
