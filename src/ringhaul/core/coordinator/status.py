"""What `ringhaul status` shows: derived from the facts, bounded, without any secret.

Decides nothing, and changes nothing.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

from ringhaul import limits
from ringhaul.core.coordinator import admission, collectives
from ringhaul.core.coordinator.model import Collective, Group, Peer, Run
from ringhaul.ids import PeerId
from ringhaul.wire.status_messages import (
    EventStatus,
    GroupStatus,
    OperationStatus,
    PeerState,
    PeerStatus,
    StatusReport,
)

#: Of the wire's durations: longer ones are shown as this.
_SECONDS_MAX = 1e7
#: Peers that one text names.
_NAMED_MAX = 4


def report(run: Run) -> StatusReport:
    """All that is to be seen at this instant."""
    groups = sorted(run.groups.values(), key=lambda group: group.number)
    peers = sorted(run.peers.values(), key=lambda peer: _place(run, peer))
    operations = [(group, c) for group in groups for c in group.open.values()]
    operations.sort(key=lambda entry: entry[1].since)
    return StatusReport(
        uptime_s=_since(run, run.now if run.started_at is None else run.started_at),
        peer_count=len(peers),
        pending_count=sum(not run.is_member(peer) for peer in peers),
        group_count=len(groups),
        operation_count=len(operations),
        groups=tuple(_group_status(run, g) for g in groups[: limits.STATUS_GROUPS_MAX]),
        peers=tuple(_peer_status(run, p) for p in peers[: limits.STATUS_PEERS_MAX]),
        operations=tuple(
            _operation_status(run, group, collective)
            for group, collective in operations[: limits.STATUS_OPERATIONS_MAX]
        ),
        events=tuple(
            EventStatus(age_s=_since(run, at), text=_short(text)) for at, text in run.events
        ),
    )


def _place(run: Run, peer: Peer) -> tuple[int, int, int]:
    """Where it stands in the list: by group, members by rank, then by arrival."""
    ring = run.group_of(peer).ring_order
    if peer.id in ring:
        return peer.group, 0, ring.index(peer.id)
    return peer.group, 1, peer.arrival


def _group_status(run: Run, group: Group) -> GroupStatus:
    return GroupStatus(
        group=group.number,
        generation=group.generation,
        world_size=len(group.ring_order),
        opening=_short(_opening(group)),
        unusable_pairs=len(group.unusable),
        revision=None if group.state is None else group.state[0],
    )


def _opening(group: Group) -> str:
    """Why a generation is being opened, and what it waits for."""
    if group.wanted is None:
        return ""
    proposed = group.proposal
    if proposed is None:
        return group.wanted.value
    missing = [p for p in proposed.ring_order if p not in proposed.ready]
    return f"{group.wanted.value}, generation {proposed.generation}: links of {_names(missing)}"


def _peer_status(run: Run, peer: Peer) -> PeerStatus:
    ring = run.group_of(peer).ring_order
    is_member = peer.id in ring
    state = PeerState.MEMBER if is_member else PeerState.PENDING
    if peer.link is None:
        state = PeerState.AWAY
    return PeerStatus(
        peer=peer.id,
        group=peer.group,
        state=state,
        rank=ring.index(peer.id) if is_member else None,
        since_s=_since(run, peer.since),
        heard_s=_since(run, peer.heard_at),
        waits_for=_short(_wait_of(run, peer)),
        outgoing_bytes_per_s=peer.outgoing_bytes_per_s,
    )


def _wait_of(run: Run, peer: Peer) -> str:
    """What a peer waits for, in words."""
    group = run.group_of(peer)
    if peer.link is None:
        left_s = peer.link_lost_at + run.options.session_grace_s - run.now
        return f"its control connection, for {max(left_s, 0.0):.0f} s more"
    if group.wanted is not None:
        return f"a new ring: {_opening(group)}"
    if not run.is_member(peer):
        return _wait_of_pending(run, group, peer)
    if run.has_voted(peer):
        missing = [p for p in admission.missing_votes(run) if p != peer.id]
        return f"admit: {_names(missing) or 'more peers to come, or open operations'}"
    for collective in group.open.values():
        if peer.id in collective.began:
            missing = [p for p in collectives.missing_of(group, collective) if p != peer.id]
            began = collective.began[peer.id]
            return f"{began.signature.kind.value} {collective.key}: {_names(missing) or 'itself'}"
    return ""


def _wait_of_pending(run: Run, group: Group, peer: Peer) -> str:
    """Why a pending peer is not let in."""
    here = len(group.ring_order) + len(run.joinable(group))
    required = max(peer.min_world_size, admission.required_size(run, group))
    if here < required:
        return f"{required - here} more peers: min_world_size is {required}"
    missing = admission.missing_votes(run)
    if missing:
        return f"the members' admit: {_names(missing)} have not called it"
    return "the end of open operations"


def _operation_status(run: Run, group: Group, collective: Collective) -> OperationStatus:
    began = next(iter(collective.began.values()))
    return OperationStatus(
        group=group.number,
        key=_short(str(collective.key)),
        call=_short(str(began.signature)),
        since_s=_since(run, collective.since),
        began_count=len(collective.began),
        finished_count=len(collective.finished),
        not_begun=_first(p for p in group.ring_order if p not in collective.began),
        not_finished=_first(p for p in group.ring_order if p not in collective.finished),
    )


def _first(peer_ids: Iterable[PeerId]) -> tuple[PeerId, ...]:
    return tuple(islice(peer_ids, limits.STATUS_NAMES_MAX))


def _names(peer_ids: Sequence[PeerId]) -> str:
    """The first of them, and how many others there are."""
    names = ", ".join(peer_ids[:_NAMED_MAX])
    others = len(peer_ids) - _NAMED_MAX
    return f"{names} and {others} others" if others > 0 else names


def _short(text: str) -> str:
    length = limits.STATUS_TEXT_MAX
    return text if len(text) <= length else text[: length - 1] + "…"


def _since(run: Run, at: float) -> float:
    return min(max(run.now - at, 0.0), _SECONDS_MAX)
