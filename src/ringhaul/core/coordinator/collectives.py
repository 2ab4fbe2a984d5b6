"""Operations: who began, who finished, and the verdict.

Decides when a collective is committed, aborted or fails. It never looks at links or timers.
"""

from ringhaul.core.coordinator import state_sync
from ringhaul.core.coordinator.model import Collective, Group, Peer, Run
from ringhaul.errors import ProtocolError
from ringhaul.ids import OnLoss, OpKey, PeerId
from ringhaul.limits import OPEN_OPERATIONS_MAX, VERDICTS_KEPT_MAX
from ringhaul.wire.coordinator_messages import (
    Began,
    Finished,
    GiveUp,
    Outcome,
    StillWaiting,
    Verdict,
)
from ringhaul.wire.records import CollectiveKind


def on_began(run: Run, peer: Peer, message: Began) -> None:
    """A member's caller is in a collective."""
    group = run.group_of(peer)
    if message.generation > group.proposed_generation:
        raise ProtocolError(f"began in generation {message.generation}, which is not open")
    if message.generation != group.generation or group.wanted is not None:
        return  # it crossed our proposal; the member begins again in the next generation
    if not run.is_member(peer):
        raise ProtocolError("begins a collective, but is no member")
    if message.key in group.closed:
        return  # it crossed the verdict
    collective = group.open.get(message.key)
    if collective is not None and peer.id in collective.began:
        raise ProtocolError(f"began {message.key} twice")
    if (message.signature.kind is CollectiveKind.SYNC_STATE) != (message.state is not None):
        raise ProtocolError("a state is reported in sync_state, and only there")
    if peer.vote is not None and message.call_index >= peer.vote.calls_made:
        raise ProtocolError("began a collective while it is in admit")
    if collective is None:
        if len(group.open) >= OPEN_OPERATIONS_MAX:
            raise ProtocolError(f"more than {OPEN_OPERATIONS_MAX} operations are open")
        collective = group.open[message.key] = Collective(key=message.key, since=run.now)
    group.is_begun = True
    collective.began[peer.id] = message
    if _find_mismatch(run, group, collective, peer):
        return
    root = message.signature.root
    if root is not None and root not in group.ring_order:
        # the callers named it by a rank of a generation before this one
        detail = f"{root}, the root of {message.signature}, was lost before the call"
        give_verdict(run, group, message.key, Outcome.LOST, (root,), detail)
        return
    all_began = len(collective.began) == len(group.ring_order)
    if message.state is not None and all_began and run.recovery is None:
        state_sync.elect(run, group, collective, fail=give_verdict)


def _find_mismatch(run: Run, group: Group, collective: Collective, peer: Peer) -> bool:
    message = collective.began[peer.id]
    first, theirs = next(iter(collective.began.items()))
    if theirs.signature != message.signature:
        detail = (
            f"{first} called {theirs.signature}, {peer.id} called {message.signature}, "
            f"both as operation {message.key}"
        )
        if theirs.state is not None and message.state is not None:
            detail += f": {state_sync.explain_mismatch(theirs, first, message, peer.id)}"
        give_verdict(run, group, message.key, Outcome.MISMATCH, (first, peer.id), detail)
        return True
    return False


def on_finished(run: Run, peer: Peer, message: Finished) -> None:
    """A member has the whole result."""
    group = run.group_of(peer)
    if message.generation > group.proposed_generation:
        raise ProtocolError(f"finished in generation {message.generation}, which is not open")
    if message.generation != group.generation or group.wanted is not None:
        return
    if message.key in group.closed:
        return
    collective = group.open.get(message.key)
    if collective is None or peer.id not in collective.began:
        raise ProtocolError(f"finished {message.key}, which it has not begun")
    if peer.id in collective.finished:
        raise ProtocolError(f"finished {message.key} twice")
    if collective.elected is None and collective.began[peer.id].state is not None:
        if run.recovery is not None:
            return  # what was elected is not known any more: it runs again
        raise ProtocolError(f"finished {message.key} before anything was elected")
    collective.finished[peer.id] = message.digest
    if len(collective.finished) == len(group.ring_order):
        _complete(run, group, collective)


def _complete(run: Run, group: Group, collective: Collective) -> None:
    """All survivors have finished: commit, unless their results differ."""
    by_digest: dict[bytes | None, list[PeerId]] = {}
    for peer_id, digest in collective.finished.items():
        by_digest.setdefault(digest, []).append(peer_id)
    if len(by_digest) > 1:
        parts = [f"{d.hex()[:8] if d else 'none'}: {', '.join(p)}" for d, p in by_digest.items()]
        detail = f"results of {collective.key} differ; by digest: {'; '.join(parts)}"
        give_verdict(
            run, group, collective.key, Outcome.DIVERGED, tuple(collective.finished), detail
        )
        return
    if collective.elected is not None:
        state_sync.commit(run, group, collective)
    if _used_all_links(group, collective):
        group.breaks.clear()
    give_verdict(run, group, collective.key, Outcome.COMMITTED)


def _used_all_links(group: Group, collective: Collective) -> bool:
    """Has data gone from each rank to the next? Then their links are worth keeping."""
    signature = next(iter(collective.began.values())).signature
    is_round = signature.kind in (
        CollectiveKind.ALL_REDUCE,
        CollectiveKind.REDUCE_SCATTER,
        CollectiveKind.ALL_GATHER,
    )
    return is_round and signature.element_count >= len(group.ring_order)


def on_give_up(run: Run, peer: Peer, message: GiveUp) -> None:
    """A member's caller cannot wait; the operation fails for all, unless it has a verdict."""
    group = run.group_of(peer)
    if message.generation > group.proposed_generation:
        raise ProtocolError(f"gives up in generation {message.generation}, which is not open")
    if message.generation < group.admitted_generation or message.key in group.closed:
        return
    if not run.is_member(peer):
        raise ProtocolError("gives up an operation, but is no member")
    collective = group.open.get(message.key)
    missing: tuple[PeerId, ...] = ()
    if collective is not None:
        missing = missing_of(group, collective)
    detail = f"{peer.id}: {message.detail}"
    if message.outcome is Outcome.TIMEOUT and missing:
        detail += f"; missing: {', '.join(missing)}"
    culprits = missing if message.outcome is Outcome.TIMEOUT else (peer.id,)
    give_verdict(run, group, message.key, message.outcome, culprits, detail)


def missing_of(group: Group, collective: Collective) -> tuple[PeerId, ...]:
    """Whom the others wait for: who has not begun, or else who has not finished."""
    absent = tuple(p for p in group.ring_order if p not in collective.began)
    return absent or tuple(p for p in group.ring_order if p not in collective.finished)


def give_verdict(
    run: Run,
    group: Group,
    key: OpKey,
    outcome: Outcome,
    culprits: tuple[PeerId, ...] = (),
    detail: str = "",
) -> None:
    """End a collective for all members of the group, also for who comes to it later."""
    is_begun = group.open.pop(key, None) is not None
    if outcome is not Outcome.ABORTED:
        group.closed[key] = None
        while len(group.closed) > VERDICTS_KEPT_MAX:
            group.closed.popitem(last=False)
    verdict = Verdict(
        generation=group.generation,
        key=key,
        outcome=outcome,
        ring_order=group.ring_order,
        counts=run.counts(),
        culprits=culprits,
        detail=detail[:1000],
        number=run.next_number(),
    )
    for peer_id in group.ring_order:
        run.send(run.peers[peer_id], verdict)
    if outcome is not Outcome.COMMITTED:
        text = f"generation {group.generation}: {key} {outcome.value} {detail}".rstrip()
        run.log(
            text,
            important=is_begun,
            event=outcome.value,
            group=group.number,
            generation=group.generation,
            key=str(key),
            reason=detail,
        )


def abort_all(run: Run, group: Group, reason: str) -> None:
    """The generation cannot go on though nobody is lost: all open operations run again."""
    for key in list(group.open):
        give_verdict(run, group, key, Outcome.ABORTED, (), reason)


def on_loss(run: Run, group: Group, lost: PeerId, reason: str) -> None:
    """A member is gone: commit what all survivors have, abort the rest.

    What nobody can bring to an end any more, a broadcast from that member, fails for all.

    Pre: `lost` is still in the ring order, so that it is named as contributor.
    """
    survivors = [p for p in group.ring_order if p != lost]
    for collective in list(group.open.values()):
        if survivors and all(p in collective.finished for p in survivors):
            collective.finished.pop(lost, None)
            _complete(run, group, collective)
            continue
        signatures = [began.signature for began in collective.began.values()]
        raises = any(s.on_loss is OnLoss.RAISE or s.root == lost for s in signatures)
        outcome = Outcome.LOST if raises else Outcome.ABORTED
        who = f"{lost}, the root," if any(s.root == lost for s in signatures) else lost
        give_verdict(run, group, collective.key, outcome, (lost,), f"{who} was lost: {reason}")


def report_waiting(run: Run, group: Group, collective: Collective) -> None:
    """Tell those who wait long who has not come."""
    collective.is_reported = True
    missing = missing_of(group, collective)
    signature = next(iter(collective.began.values())).signature
    report = StillWaiting(
        what=f"{signature} as operation {collective.key}",
        missing=missing,
        waited_s=run.now - collective.since,
    )
    for peer_id in collective.began:
        if peer_id in group.ring_order:
            run.send(run.peers[peer_id], report)
    run.log(
        f"{report.what} waits for {', '.join(missing)}",
        event="waiting",
        group=group.number,
        generation=group.generation,
        key=str(collective.key),
        missing=", ".join(missing),
    )
