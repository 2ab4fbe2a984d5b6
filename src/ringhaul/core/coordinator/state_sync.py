"""The election of the shared state: whose content all members shall have.

Decides what is elected and who asks whom. It never sees the state itself.
"""

from collections import Counter
from typing import Protocol

from ringhaul.core.coordinator import journal
from ringhaul.core.coordinator.model import Collective, Group, Run
from ringhaul.ids import OpKey, PeerId
from ringhaul.wire.coordinator_messages import Outcome, SyncPlan
from ringhaul.wire.records import StateReport, Strategy, Ticket

#: A requester gets so many holders to ask, one after the other.
HOLDERS_MAX = 16


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

    Eligible are members that took part in a committed sync of this run; if there are none,
    all. Among their contents that follow on the last committed one, the one held by most
    wins; ties go to the smallest digest.
    """
    reports = {p: began.state for p, began in collective.began.items() if began.state is not None}
    offers = {p: r for p, r in reports.items() if r.strategy is not Strategy.RECEIVE_ONLY}
    eligible = {p: r for p, r in offers.items() if run.peers[p].holds_state}
    any_holder = any(run.peers[p].holds_state for p in reports)
    if any_holder and not eligible:
        detail = "every member that holds the run's state called receive_only"
        fail(run, group, collective.key, Outcome.NO_STATE, tuple(reports), detail)
        return
    candidates = eligible if any_holder else offers
    winner = _choose(group, candidates, any_holder=any_holder)
    if winner is None:
        fail(
            run, group, collective.key, Outcome.NO_STATE, tuple(candidates), _why(group, candidates)
        )
        return
    differ = [p for p, r in reports.items() if (r.revision, r.digest) != winner]
    stubborn = tuple(p for p in differ if reports[p].strategy is Strategy.SEND_ONLY)
    if stubborn:
        detail = f"{', '.join(stubborn)} called send_only, but another content was elected"
        fail(run, group, collective.key, Outcome.NO_STATE, stubborn, detail)
        return
    collective.elected = winner
    _send_plans(run, group, collective, reports)


def _choose(
    group: Group, candidates: dict[PeerId, StateReport], *, any_holder: bool
) -> tuple[int, bytes] | None:
    contents = [(r.revision, r.digest) for r in candidates.values()]
    if any_holder and group.state is not None:
        revision = group.state[0]
        contents = [c for c in contents if c == group.state or c[0] == revision + 1]
    elif contents:
        newest = max(revision for revision, _ in contents)
        contents = [c for c in contents if c[0] == newest]
    tally = Counter(contents)
    return min(tally, key=lambda content: (-tally[content], content[1]), default=None)


def _why(group: Group, candidates: dict[PeerId, StateReport]) -> str:
    if not candidates:
        return "nobody offers a state: all called receive_only"
    held = ", ".join(f"{p}: revision {r.revision}" for p, r in candidates.items())
    last = group.state[0] if group.state else 0
    return (
        f"the last committed revision is {last}; members may offer that content unchanged, or "
        f"revision {last + 1}, but they have {held}"
    )


def _send_plans(
    run: Run, group: Group, collective: Collective, reports: dict[PeerId, StateReport]
) -> None:
    assert collective.elected is not None
    revision, digest = collective.elected
    holders = [p for p, r in reports.items() if r.digest == digest]
    receivers = [p for p, r in reports.items() if r.digest != digest]
    asks: dict[PeerId, list[PeerId]] = {}
    for turn, receiver in enumerate(receivers):  # spread the first choices over the holders
        start = turn % len(holders)
        asks[receiver] = (holders[start:] + holders[:start])[:HOLDERS_MAX]

    def ticket(receiver: PeerId, holder: PeerId, whom: PeerId, *, located: bool) -> Ticket:
        transfer = ("state", group.number, group.generation, collective.key, receiver, holder)
        return Ticket(
            peer=whom,
            addresses=run.peers[whom].addresses if located else (),
            token=run.token(*transfer, "token"),
            proof=run.token(*transfer, "proof"),
        )

    for peer_id in group.ring_order:
        plan = SyncPlan(
            generation=group.generation,
            key=collective.key,
            revision=revision,
            digest=digest,
            holders=tuple(
                ticket(peer_id, holder, holder, located=True) for holder in asks.get(peer_id, ())
            ),
            requesters=tuple(
                ticket(receiver, peer_id, receiver, located=False)
                for receiver, holders_asked in asks.items()
                if peer_id in holders_asked
            ),
        )
        run.send(run.peers[peer_id], plan)


def commit(run: Run, group: Group, collective: Collective) -> None:
    """All members hold the elected content now."""
    group.state = collective.elected
    for peer_id in collective.finished:
        run.peers[peer_id].holds_state = True
    journal.save_group(run, group)
