"""The election of the shared state: whose content all members shall have.

Decides what is elected and who asks whom. It never sees the state itself.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from ringhaul.core.coordinator import journal
from ringhaul.core.coordinator.model import Collective, Group, Run
from ringhaul.ids import OpKey, PeerId
from ringhaul.limits import (
    STATE_FELLOWS_MAX,
    STATE_HOLDERS_MAX,
    STATE_REQUESTERS_PER_HOLDER,
)
from ringhaul.state.manifest import explain_difference
from ringhaul.wire.coordinator_messages import Began, Outcome, SyncPlan
from ringhaul.wire.records import Content, StateReport, Strategy, Ticket

Reports = dict[PeerId, StateReport]

#: Of a requester without luck: at least so many holders are named to it, if there are.
_HOLDERS_MIN = 2


class Fail(Protocol):
    """Ends a collective with an error for all."""

    def __call__(
        self,
        run: Run,
        group: Group,
        key: OpKey,
        outcome: Outcome,
        culprits: tuple[PeerId, ...] = (),
        detail: str = "",
    ) -> None:
        """Give the verdict."""


def elect(run: Run, group: Group, collective: Collective, *, fail: Fail) -> None:
    """All members have reported: elect, and tell each what to do.

    What an earlier attempt of this call elected stays elected: if nobody is left who has it,
    the call fails. Eligible are members that took part in a committed sync of this run; if
    there are none, all. Among their contents that follow on the last committed one, the one
    held by most wins; ties go to the smallest digest.
    """
    reports = {p: began.state for p, began in collective.began.items() if began.state is not None}
    call = (group.admitted_generation, collective.key)
    if group.elected is not None and group.elected[:2] == call:
        winner: Content | _Problem = _elect_again(group.elected[2], reports)
    else:
        winner = _elect_first(run, group, reports)
    if isinstance(winner, Content):
        winner = _refuse_to_overwrite(winner, reports)
    if isinstance(winner, _Problem):
        fail(run, group, collective.key, Outcome.NO_STATE, winner.culprits, winner.detail)
        return
    collective.elected = (winner.revision, winner.digest)
    group.elected = (*call, winner)
    _send_plans(run, group, collective, reports, winner)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Why nothing was elected, and what to do."""

    detail: str
    culprits: tuple[PeerId, ...]


def _elect_again(earlier: Content, reports: Reports) -> Content | _Problem:
    if any(_holds(report, earlier.digest) for report in reports.values()):
        return earlier
    detail = (
        f"the last member that held the elected content, revision {earlier.revision}, was lost "
        "before anybody had fetched it; the arrays are as they were: load a checkpoint on one "
        "peer, or call sync_state again to go on with what is left"
    )
    return _Problem(detail, tuple(reports))


def _elect_first(run: Run, group: Group, reports: Reports) -> Content | _Problem:
    offers = {p: r for p, r in reports.items() if r.strategy is not Strategy.RECEIVE_ONLY}
    candidates = {p: r for p, r in offers.items() if run.peers[p].holds_state}
    any_holder = any(run.peers[p].holds_state for p in reports)
    if any_holder and not candidates:
        detail = (
            "every member that holds the run's state called receive_only; "
            'one of them has to call "popular" or "send_only"'
        )
        return _Problem(detail, tuple(reports))
    if not any_holder:
        candidates = offers
    contents = [(r.revision, r.digest) for r in candidates.values()]
    if any_holder and group.state is not None:
        revision = group.state[0]
        contents = [c for c in contents if c == group.state or c[0] == revision + 1]
    elif contents:
        newest = max(revision for revision, _ in contents)
        contents = [c for c in contents if c[0] == newest]
    if not contents:
        return _Problem(_why(group, candidates), tuple(candidates))
    tally = Counter(contents)
    return Content(*min(tally, key=lambda content: (-tally[content], content[1])))


def _refuse_to_overwrite(winner: Content, reports: Reports) -> Content | _Problem:
    """The winner, unless it would have to be written where the caller forbids it."""
    version = (winner.revision, winner.digest)
    stubborn = tuple(
        p
        for p, r in reports.items()
        if r.strategy is Strategy.SEND_ONLY and (r.revision, r.digest) != version
    )
    if not stubborn:
        return winner
    detail = (
        f"{', '.join(stubborn)} called send_only, but another content was elected (revision "
        f"{winner.revision}): have more members hold theirs, or the others call receive_only"
    )
    return _Problem(detail, stubborn)


def explain_mismatch(theirs: Began, first: PeerId, ours: Began, second: PeerId) -> str:
    """Which entry differs."""
    assert theirs.state is not None
    assert ours.state is not None
    return explain_difference(first, theirs.state.manifest, second, ours.state.manifest)


def _holds(report: StateReport, digest: bytes) -> bool:
    """Has it this content, its own or fetched in an earlier attempt?"""
    fetched = report.fetched
    return report.digest == digest or (fetched is not None and fetched.digest == digest)


def _why(group: Group, candidates: Reports) -> str:
    if not candidates:
        return (
            "nobody offers a state: all called receive_only; "
            'one of them has to call "popular" or "send_only"'
        )
    held = ", ".join(f"{p}: revision {r.revision}" for p, r in candidates.items())
    last = group.state[0] if group.state else 0
    changed = [p for p, r in candidates.items() if group.state and r.revision == last]
    hint = f"set state.revision to {last + 1} after an update that all made alike"
    if changed:
        hint = f"{', '.join(changed)} changed the content without a new revision: {hint}"
    return (
        f"the last committed revision is {last}; members may offer that content unchanged, or "
        f"revision {last + 1}, but they have {held}; {hint}"
    )


def _send_plans(
    run: Run,
    group: Group,
    collective: Collective,
    reports: Reports,
    winner: Content,
) -> None:
    holders = [p for p, r in reports.items() if _holds(r, winner.digest)]
    receivers = [p for p, r in reports.items() if not _holds(r, winner.digest)]
    asks = share_out(receivers, holders)

    def ticket(receiver: PeerId, source: PeerId, whom: PeerId, *, located: bool) -> Ticket:
        transfer = ("state", group.number, group.generation, collective.key, receiver, source)
        return Ticket(
            peer=whom,
            addresses=run.peers[whom].addresses if located else (),
            token=run.token(*transfer, "token"),
            proof=run.token(*transfer, "proof"),
        )

    clients: dict[PeerId, list[PeerId]] = {}
    for receiver, (asked_holders, asked_fellows) in asks.items():
        for source in (*asked_holders, *asked_fellows):
            clients.setdefault(source, []).append(receiver)
    for peer_id in group.ring_order:
        asked_holders, asked_fellows = asks.get(peer_id, ([], []))
        plan = SyncPlan(
            generation=group.generation,
            key=collective.key,
            revision=winner.revision,
            digest=winner.digest,
            holders=tuple(ticket(peer_id, p, p, located=True) for p in asked_holders),
            fellows=tuple(ticket(peer_id, p, p, located=True) for p in asked_fellows),
            requesters=tuple(
                ticket(receiver, peer_id, receiver, located=False)
                for receiver in clients.get(peer_id, ())
            ),
            place=receivers.index(peer_id) if peer_id in asks else 0,
            requester_count=len(receivers),
        )
        run.send(run.peers[peer_id], plan)


def share_out(
    receivers: list[PeerId], holders: list[PeerId]
) -> dict[PeerId, tuple[list[PeerId], list[PeerId]]]:
    """The holders and fellows that each receiver asks.

    All holders, if there are few requesters; else about `STATE_REQUESTERS_PER_HOLDER` come to
    one. Fellows stand 1, 2, 4, ... places further: everybody is a few hops from everybody.
    """
    if not receivers:
        return {}
    room = STATE_REQUESTERS_PER_HOLDER * len(holders) // len(receivers)
    holder_count = min(max(_HOLDERS_MIN, room), STATE_HOLDERS_MAX, len(holders))
    asks = {}
    for turn, receiver in enumerate(receivers):
        start = turn * holder_count % len(holders)
        asked = (holders[start:] + holders)[:holder_count]
        steps = {(1 << power) % len(receivers) for power in range(STATE_FELLOWS_MAX)} - {0}
        fellows = [receivers[(turn + step) % len(receivers)] for step in sorted(steps)]
        asks[receiver] = (asked, fellows)
    return asks


def commit(run: Run, group: Group, collective: Collective) -> None:
    """All members hold the elected content now."""
    group.state = collective.elected
    for peer_id in collective.finished:
        run.peers[peer_id].holds_state = True
    journal.save_group(run, group)
