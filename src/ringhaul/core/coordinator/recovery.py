"""After a restart: members of the earlier start come back and tell what they know.

Decides when all are there and how the run goes on: which generation is the open one, which
decisions stand, who is lost. Until then nothing is concluded and nobody is let in. What members
report outranks the journal: a decision that one of them has heard stands, and the others are
told; what all have finished is committed by the ordinary rules.
"""

from collections.abc import Callable, Iterator

from ringhaul.core.coordinator import collectives, journal, members
from ringhaul.core.coordinator.catch_up import catch_up
from ringhaul.core.coordinator.model import Group, Peer, Recovery, Run, Wanted
from ringhaul.core.coordinator.reports import (
    Told,
    completed_ring,
    newest_admission,
    read_reports,
    reports_of,
)
from ringhaul.errors import ProtocolError
from ringhaul.ids import Generation, LinkId, PeerId
from ringhaul.limits import (
    GENERATIONS_SKIPPED,
    INCARNATION_MAX,
    RUN_PEERS_MAX,
    TOLD_BYTES_MAX,
    UNACKNOWLEDGED_MAX,
)
from ringhaul.wire.codec import Envelope
from ringhaul.wire.coordinator_messages import (
    Began,
    Finished,
    LinkFailed,
    Report,
    Verdict,
    VoteResult,
)
from ringhaul.wire.message import Message
from ringhaul.wire.records import CollectiveKind, StateReport
from ringhaul.wire.session_messages import Hello, Resume

Handle = Callable[[Peer, Message], None]

#: What a message takes that names nobody, and what a name adds.
_MESSAGE_BYTES = 1000
_NAME_BYTES = 100


def begin(run: Run, *, has_journal: bool) -> None:
    """Wait for those who know the run, from the first step on."""
    run.recovery = Recovery(
        since=run.now, is_identified=has_journal, has_journal=has_journal, look_at=run.now
    )
    for peer in run.peers.values():
        peer.link_lost_at = peer.heard_at = run.now
    if has_journal:
        run.log("this coordinator was started again: waiting for the members of its run")
    else:
        wait_s = run.options.resume_wait_s
        run.log(
            f"peers of an earlier coordinator, if there was one, have {wait_s:g} s to come back"
        )


# -- while they come back ---------------------------------------------------------------------


def on_hello(run: Run, recovery: Recovery, link: LinkId, host: str, message: Hello) -> None:
    """A newcomer: it has a session once the run is known."""
    if recovery.is_identified:
        members.on_hello(run, link, host, message)
    elif any(link == waiting for waiting, _, _ in recovery.hellos):
        members.refuse(run, link, "said hello twice")
    else:
        recovery.hellos.append((link, host, message))


def on_resume(run: Run, recovery: Recovery, envelope: Envelope, message: Resume) -> None:
    """A peer is back, perhaps one that we do not know: the first one names the run."""
    if envelope.incarnation > INCARNATION_MAX:
        return  # refused: there would be no higher one left
    if not recovery.is_identified and any(envelope.run_id):
        run.run_id = envelope.run_id
        recovery.since = recovery.look_at = run.now  # the others get their time from now on
        _identify(run, recovery)
        journal.save_run(run)
        run.log(f"{message.peer} continues the run {run.run_id.hex()[:8]}")
    if envelope.run_id != run.run_id:
        return
    peer = run.peers.get(message.peer)
    if peer is None and len(run.peers) >= RUN_PEERS_MAX:
        return  # refused: a crowd that claims to be of the run fills no memory
    known = peer.secret if peer is not None else b""
    is_ours = message.secret == (known or members.session_secret(run, message.peer))
    if (known or recovery.has_journal) and not is_ours:
        return  # refused: it has no session
    if envelope.incarnation >= run.incarnation and (peer is None or peer.awaits_reset):
        run.incarnation = envelope.incarnation + 1
        journal.save_run(run)
    if known:
        return
    if peer is None:
        peer = _recreate(run, message.peer, message.group)
    peer.secret = message.secret
    peer.addresses = message.addresses
    peer.min_world_size = message.min_world_size


def _identify(run: Run, recovery: Recovery) -> None:
    recovery.is_identified = True
    for link, host, hello in recovery.hellos:
        if link in run.links:
            members.on_hello(run, link, host, hello)
    recovery.hellos.clear()


def _recreate(run: Run, peer_id: PeerId, group: int) -> Peer:
    """A peer that others have named, or that names itself; it has no secret yet."""
    run.arrivals += 1
    peer = run.peers[peer_id] = Peer(
        id=peer_id,
        secret=b"",
        group=group,
        addresses=(),
        min_world_size=1,
        arrival=run.arrivals,
        link=None,
        link_lost_at=run.now,
        heard_at=run.now,
        awaits_reset=True,
    )
    run.group_of(peer)
    return peer


def on_message(run: Run, recovery: Recovery, peer: Peer, message: Message) -> None:
    """Keep what a peer tells until all are there."""
    heard = recovery.heard.setdefault(peer.id, [])
    told_bytes = recovery.told_bytes.get(peer.id, 0) + _size_of(message)
    if len(heard) >= UNACKNOWLEDGED_MAX or told_bytes > TOLD_BYTES_MAX:
        raise ProtocolError("tells too much")
    recovery.told_bytes[peer.id] = told_bytes
    if isinstance(message, Report):
        if peer.id in recovery.reports:
            raise ProtocolError("reports twice")
        rings = [ring.ring_order for ring in (message.opened, message.proposal) if ring]
        named = {member for ring in rings for member in ring}
        if len(named | run.peers.keys()) > RUN_PEERS_MAX:
            raise ProtocolError("names more members than a run has")
        recovery.reports[peer.id] = message
        for member in sorted(named - run.peers.keys()):
            _recreate(run, member, peer.group)
    else:
        heard.append(message)


def _size_of(message: Message) -> int:
    """About how much memory a message takes: names, texts and a manifest are what can be long."""
    match message:
        case Began(state=StateReport() as report):
            return _MESSAGE_BYTES + len(report.manifest)
        case Verdict() | VoteResult():
            return _MESSAGE_BYTES + _NAME_BYTES * len(message.ring_order + message.culprits)
        case _:
            return _MESSAGE_BYTES


def on_breach(run: Run, recovery: Recovery, peer: Peer, reason: str) -> None:
    """It broke the protocol: it is out as soon as all are there."""
    recovery.missing[peer.id] = reason
    if peer.link is not None:
        run.close(peer.link, reason)
        peer.link = None


def timers(run: Run, recovery: Recovery) -> Iterator[tuple[float, Callable[[], None]]]:
    """When to look again whether all are there, and the end of the wait."""
    for wait_s in (run.options.resume_wait_s, run.options.session_grace_s):
        at = recovery.since + wait_s
        if at > recovery.look_at:
            yield at, lambda: _look(run, recovery)
            return


def _look(run: Run, recovery: Recovery) -> None:
    recovery.look_at = run.now


def is_over(run: Run, recovery: Recovery) -> bool:
    """Are all there who will come?"""
    if not recovery.is_identified and not recovery.hellos:
        return False  # nobody wants to found a run: who comes back later is as welcome
    waited_s = run.now - recovery.since
    if waited_s >= run.options.session_grace_s:
        return True
    refused = _find_refused(recovery) if waited_s >= run.options.resume_wait_s else {}
    for peer_id, reason in refused.items():
        if (
            peer_id in run.peers
            and run.peers[peer_id].link is None
            and peer_id not in recovery.reports
        ):
            recovery.missing.setdefault(peer_id, reason)
    awaited = {p for group in run.groups.values() for p in group.ring_order}
    for report in recovery.reports.values():
        awaited.update(report.opened.ring_order if report.opened else ())
    if (last := newest_admission(recovery)) is not None:
        for group in run.groups.values():
            told = reports_of(run, recovery, group.number).values()
            ring = completed_ring(group.number, told, last)
            awaited.update(ring.ring_order if ring else ())
    known_lost = {p for p in awaited if _is_known_lost(run, recovery, p)}
    awaited -= known_lost | recovery.reports.keys() | recovery.missing.keys()
    awaited |= {
        peer_id
        for peer_id in recovery.heard.keys() - recovery.reports.keys() - recovery.missing.keys()
        if run.peers[peer_id].link is not None
    }
    has_waited = recovery.has_journal or waited_s >= run.options.resume_wait_s
    return not awaited and has_waited


def _find_refused(recovery: Recovery) -> dict[PeerId, str]:
    """Whose neighbours were refused when they redialled: a witness against who is away."""
    return {
        message.neighbour: f"its connection closed, and {reporter} was refused: {message.reason}"
        for reporter, heard in recovery.heard.items()
        for message in heard
        if isinstance(message, LinkFailed) and message.refused
    }


def _is_known_lost(run: Run, recovery: Recovery, peer_id: PeerId) -> bool:
    """Does the journal say that it was removed before we died?"""
    peer = run.peers[peer_id]
    if not recovery.has_journal or peer.secret:
        return False
    group = run.group_of(peer)
    opened = [
        report.opened.generation
        for reporter, report in recovery.reports.items()
        if report.opened is not None and run.peers[reporter].group == group.number
    ]
    return max(opened, default=0) == group.generation


# -- when all are there -----------------------------------------------------------------------


def maybe_end(run: Run, handle: Handle) -> bool:
    """Go on with the run if all are there. Tell whether it goes on."""
    recovery = run.recovery
    if recovery is None:
        return False
    recovery.hellos = [waiting for waiting in recovery.hellos if waiting[0] in run.links]
    if not is_over(run, recovery):
        return False
    if not recovery.is_identified:
        _identify(run, recovery)
    told = read_reports(run, recovery)
    for group in told.values():
        _go_on(run, recovery, group)
    for peer_id, heard in recovery.heard.items():
        for message in heard if peer_id in recovery.reports else ():
            peer = run.peers.get(peer_id)
            if peer is None:
                break  # it left, or has just been lost
            if not (isinstance(message, (Verdict, VoteResult)) or _is_aborted(told, peer, message)):
                handle(peer, message)
    run.recovery = None
    for peer in list(run.peers.values()):
        if run.is_member(peer) and peer.id not in recovery.reports:
            why = recovery.missing.get(peer.id, "it did not come back to the restarted coordinator")
            members.remove(run, peer, why)
        elif peer.id in recovery.missing:
            members.remove(run, peer, recovery.missing[peer.id])
        elif not peer.secret:
            members.remove(run, peer, "nobody knows it")
    for group in told.values():
        _maybe_repair(run, group)
    _save_all(run)
    text = "all who came back have told what they know: the run goes on"
    run.log(text, important=bool(recovery.reports))
    return True


def _is_aborted(told: dict[int, Told], peer: Peer, message: Message) -> bool:
    """Is it a part of an attempt that others were told is aborted?

    Its sender may have begun after it had heard so: then its generation was closing already.
    """
    return (
        isinstance(message, (Began, Finished))
        and peer.group in told
        and message.generation == told[peer.group].opened_generation
        and message.key in told[peer.group].aborted
    )


def _save_all(run: Run) -> None:
    for peer in run.peers.values():
        journal.save_peer(run, peer)
    for group in run.groups.values():
        journal.save_group(run, group)


def _go_on(run: Run, recovery: Recovery, told: Told) -> None:
    """Put a group into the newest generation that any member knows, and tell what stands."""
    group = told.group
    opened = told.opened
    known = max(group.proposed_generation, told.proposed_generation)
    if known:  # what was proposed to peers that are away, and is in no journal, is not used again
        group.proposed_generation = Generation(known + GENERATIONS_SKIPPED)
    group.state = told.state or group.state
    for peer_id, reason in told.outsiders.items():
        recovery.missing.setdefault(peer_id, reason)
    if opened is None:
        # whom the journal takes for members of an opening that never reached anybody
        group.ring_order = tuple(p for p in group.ring_order if p not in recovery.reports)
        return
    group.generation = opened.generation
    group.ring_order = opened.ring_order
    group.admitted_generation = told.admitted_generation
    group.newcomers = opened.joined
    group.is_begun = told.is_begun
    for key in told.closed:
        group.closed[key] = None
    for peer_id in group.ring_order:
        if peer_id in recovery.reports and peer_id not in recovery.missing:
            catch_up(run, recovery, told, opened, run.peers[peer_id])


def _maybe_repair(run: Run, told: Told) -> None:
    """What was begun and cannot go on runs again in a new generation."""
    group = told.group
    syncs = [
        key
        for key, collective in group.open.items()
        for began in collective.began.values()
        if began.signature.kind is CollectiveKind.SYNC_STATE
    ]
    if group.ring_order and (told.needs_opening or syncs) and group.wanted is None:
        _repair(run, group)


def _repair(run: Run, group: Group) -> None:
    collectives.abort_all(run, group, "the coordinator was started again")
    group.wanted = Wanted.REPAIR
