"""Votes of `admit`, and the founding of a run.

Decides when pending peers are let in: when every member of every group has voted and no
operation is open; or, if nobody is a member, when enough are pending.
"""

from ringhaul.core.coordinator import collectives
from ringhaul.core.coordinator.model import Group, Peer, Run, Wanted
from ringhaul.errors import ProtocolError
from ringhaul.ids import Generation, PeerId
from ringhaul.wire.coordinator_messages import (
    GiveUpVote,
    Outcome,
    StillWaiting,
    Vote,
    VoteOutcome,
    VoteResult,
)


def on_vote(run: Run, peer: Peer, message: Vote) -> None:
    """A member's caller is in `admit`. It votes again in every generation a repair opens."""
    group = run.group_of(peer)
    if message.generation > group.generation:
        raise ProtocolError(f"votes in generation {message.generation}, which is not open")
    if message.generation < group.admitted_generation or message.index < run.admit_index:
        return  # it crossed the result
    if not run.is_member(peer):
        raise ProtocolError("votes, but is no member")
    is_again = peer.vote is not None and peer.vote.generation >= message.generation
    if message.index > run.admit_index or is_again:
        raise ProtocolError(f"votes in admit {message.index} out of turn")
    if peer.vote is None:
        peer.voted_at = run.now
    peer.vote = message
    if not run.has_voted(peer):
        return  # it votes again when it has seen the repair
    if message.fresh and group.is_begun:
        if group.wanted is None:  # else it votes again, and is told of a ring that is open
            _skip(run, peer)
        return
    for collective in group.open.values():
        for other, began in collective.began.items():
            if began.call_index >= message.calls_made:
                _mismatch(run, group, peer.id, other, str(began.signature))
                return


def on_began(run: Run, beginner: Peer, generation: Generation) -> None:
    """A collective was begun: skip fresh votes, and find members that are in `admit`."""
    group = run.group_of(beginner)
    if generation != group.generation or group.wanted is not None:
        return  # it begins again in the next generation, if it is in that
    for member_id in group.ring_order:
        member = run.peers[member_id]
        if run.has_voted(member) and member.vote and member.vote.fresh and member is not beginner:
            _skip(run, member)
    # a fresh vote is from before a repair: it will be skipped when it comes again
    votes = {p: v for p in group.ring_order if (v := run.peers[p].vote) and not v.fresh}
    if not votes:
        return
    for collective in list(group.open.values()):
        began = collective.began.get(beginner.id)
        for member_id, vote in votes.items():
            if began and began.call_index >= vote.calls_made:
                _mismatch(run, group, member_id, beginner.id, str(began.signature))
                return


def _skip(run: Run, peer: Peer) -> None:
    """A newcomer's first `admit` ends for it alone: the members do something else."""
    assert peer.vote is not None
    index = peer.vote.index
    peer.vote = None
    _answer(run, peer, index, VoteOutcome.SKIPPED, number=run.next_number())


def _mismatch(run: Run, group: Group, voter: PeerId, other: PeerId, called: str) -> None:
    detail = f"{voter} called admit while {other} called {called}"
    for key in list(group.open):
        collectives.give_verdict(run, group, key, Outcome.MISMATCH, (voter, other), detail)
    _finish(run, VoteOutcome.MISMATCH, (voter, other), detail)


def on_give_up_vote(run: Run, peer: Peer, message: GiveUpVote) -> None:
    """A member's caller cannot wait in `admit` any longer: it ends for all."""
    group = run.group_of(peer)
    if message.generation > group.proposed_generation:
        raise ProtocolError(f"gives up in generation {message.generation}, which is not open")
    if message.generation < group.admitted_generation or message.index < run.admit_index:
        return
    if any(g.wanted is Wanted.ADMISSION for g in run.groups.values()):
        return  # all have voted: it is being done
    if message.index > run.admit_index or not run.is_member(peer):
        raise ProtocolError("gives up an admit out of turn")
    if peer.vote is None:
        return  # its own `admit` was skipped meanwhile, and the others may never come to this one
    voters = [run.peers[p] for p in group.ring_order if run.peers[p].vote is not None]
    if all(v.vote.fresh for v in voters if v.vote):
        _skip(run, peer)  # the others may never come to this one
        return
    missing = missing_votes(run)
    detail = f"{peer.id}: {message.detail}"
    if missing and message.outcome is VoteOutcome.TIMEOUT:
        detail += f"; missing: {', '.join(missing)}"
    culprits = missing if message.outcome is VoteOutcome.TIMEOUT else (peer.id,)
    for member in run.members():
        if _is_extra(run, member):
            _skip(run, member)
    _finish(run, message.outcome, culprits, detail)


def _is_extra(run: Run, member: Peer) -> bool:
    """Is it in an `admit` of its own: a newcomer, while others of its group are at work?"""
    group = run.group_of(member)
    if not (run.has_voted(member) and member.vote and member.vote.fresh):
        return False
    return any(
        other not in group.newcomers and not run.has_voted(run.peers[other])
        for other in group.ring_order
    )


def missing_votes(run: Run) -> tuple[PeerId, ...]:
    """Members that have not voted."""
    return tuple(member.id for member in run.members() if not run.has_voted(member))


def _finish(
    run: Run, outcome: VoteOutcome, culprits: tuple[PeerId, ...] = (), detail: str = ""
) -> None:
    """End this `admit` for all members, without a new generation."""
    index = run.admit_index
    run.admit_index += 1
    run.vote_reported = False
    for member in run.members():
        member.vote = None
    number = run.next_number()
    for member in run.members():
        _answer(run, member, index, outcome, culprits, detail, number=number)
    if outcome is not VoteOutcome.UNCHANGED:
        run.log(f"admit {outcome.value}: {detail}")


def _answer(
    run: Run,
    peer: Peer,
    index: int,
    outcome: VoteOutcome,
    culprits: tuple[PeerId, ...] = (),
    detail: str = "",
    *,
    number: int,
) -> None:
    group = run.group_of(peer)
    result = VoteResult(
        index=index,
        outcome=outcome,
        generation=group.generation,
        ring_order=group.ring_order,
        counts=run.counts(),
        culprits=culprits,
        detail=detail[:1000],
        number=number,
    )
    run.send(peer, result)


def maybe_admit(run: Run) -> bool:
    """Let pending peers in if it is time. Tell whether anything was done."""
    if any(group.wanted or group.open for group in run.groups.values()):
        return False
    members = run.members()
    if not all(run.has_voted(member) for member in members):
        return False
    groups = list(run.groups.values())
    if _find_differing_counts(run):
        return True
    if any(size_after(run, g) < required_size(run, g) for g in groups if g.ring_order):
        return False  # admit waits for more
    joining = {group.number for group in groups if run.admissible(group)}
    if not joining:
        if members:
            _finish(run, VoteOutcome.UNCHANGED)
        return bool(members)
    for group in groups:
        if group.ring_order or group.number in joining:
            group.wanted = Wanted.ADMISSION
    return True


def size_after(run: Run, group: Group) -> int:
    """How large the ring would be after an admission."""
    return len(group.ring_order) + len(run.admissible(group))


def required_size(run: Run, group: Group) -> int:
    """How many have to be there before `admit` returns: the members' `min_world_size`."""
    return max((run.peers[p].min_world_size for p in group.ring_order), default=1)


def _find_differing_counts(run: Run) -> bool:
    for group in run.groups.values():
        votes = [(p, run.peers[p].vote) for p in group.ring_order]
        counts = {vote.calls_made: p for p, vote in votes if vote is not None}
        if len(counts) > 1:
            (few, first), *_, (many, last) = sorted(counts.items())
            detail = (
                f"{first} called admit after {few} collectives, {last} after {many}: all members "
                "of a group must make the same calls"
            )
            _finish(run, VoteOutcome.MISMATCH, (first, last), detail)
            return True
    return False


def waiting_since(run: Run) -> float | None:
    """Since when the oldest vote that counts waits for others; None if none does."""
    voted = [member.voted_at for member in run.members() if run.has_voted(member)]
    return min(voted) if voted and not run.vote_reported else None


def report_waiting(run: Run) -> None:
    """Tell those in `admit` for whom it waits."""
    since = waiting_since(run)
    assert since is not None
    run.vote_reported = True
    missing = missing_votes(run)
    report = StillWaiting(what="admit", missing=missing, waited_s=run.now - since)
    for member in run.members():
        if run.has_voted(member):
            run.send(member, report)
    names = ", ".join(missing) or "more peers to come"
    run.log(f"admit waits for {names}", event="waiting", missing=names)
