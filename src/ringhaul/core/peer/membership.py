"""The peer's half of `admit` and of opening generations.

Decides when links are made, when a generation is in use, and how an `admit` ends.
"""

from dataclasses import replace
from typing import Any

from ringhaul.core.peer import collective, recovery
from ringhaul.core.peer.model import Admit, Phase, State
from ringhaul.core.peer.steps import (
    AdmitCalled,
    Complete,
    DropTransfer,
    Fail,
    Joined,
    LinkBroken,
    LinkUp,
    MakeLinks,
    UseRing,
    View,
)
from ringhaul.errors import CallTimeout, CollectiveAborted, MismatchError, RinghaulError
from ringhaul.ring.order import neighbours_of
from ringhaul.wire.coordinator_messages import (
    GiveUpVote,
    LinkFailed,
    LinkReady,
    Opened,
    Proposal,
    Vote,
    VoteOutcome,
    VoteResult,
)


def on_proposal(state: State, message: Proposal) -> None:
    """A new ring is tried: what has no verdict runs again in it."""
    if message.generation <= state.generation:
        return
    state.proposal = message
    state.broken.clear()
    for call in state.calls.values():
        if call.attempt is not None:
            call.attempt = None
            call.is_finished = False
            state.effects.append(DropTransfer(call.id))
    state.effects.append(MakeLinks(message))


def on_link_up(state: State, event: LinkUp) -> None:
    """Our link of the proposed ring is up."""
    if state.proposal is not None and event.generation == state.proposal.generation:
        state.send(LinkReady(generation=event.generation))


def on_link_broken(state: State, event: LinkBroken) -> None:
    """A neighbour's link broke: the coordinator finds out who is at fault."""
    generation = state.generation
    ring_order = state.ring_order
    if state.proposal is not None:
        generation, ring_order = state.proposal.generation, state.proposal.ring_order
    if state.peer_id not in ring_order or event.neighbour not in neighbours_of(
        ring_order, state.peer_id
    ):
        return  # it was one in an older ring
    known = {(generation, event.neighbour, refused) for refused in (event.refused, True)}
    if known & state.broken:
        return  # but a refusal after a mere reset is news: a second witness
    state.broken.add((generation, event.neighbour, event.refused))
    message = LinkFailed(
        generation=generation,
        neighbour=event.neighbour,
        refused=event.refused,
        reason=event.reason[:1000],
    )
    state.send(message)


def on_opened(state: State, message: Opened) -> None:
    """A generation is open: begin, or begin again, what waits for it."""
    state.opened = message
    state.last_number = max(state.last_number, message.opened_after)
    state.generation = message.generation
    state.ring_order = message.ring_order
    state.proposal = None
    state.broken.clear()
    state.effects.append(UseRing(message.generation))
    view = state.view(message.generation, message.ring_order, message.counts, message.joined)
    if message.admission:
        state.admitted_generation = message.generation
        state.given_up.clear()
        state.call_count = 0
        state.ordinals.clear()
        state.admit_index = 0
        state.is_fresh = False
        state.failures.clear()
        state.vote_results.clear()
    if state.phase is Phase.PENDING:
        state.phase = Phase.MEMBER
        state.is_fresh = True
        state.effects.append(Joined(view))
    elif message.admission and state.admit is not None:
        state.effects.append(Complete(call=state.admit.id, view=view))
        state.admit = None
    collective.on_opened(state, view)
    if state.admit is not None and state.admit.vote is not None and state.admit.asked is None:
        # it stands, and says now that all calls before it have begun in this generation
        state.admit.vote = replace(state.admit.vote, generation=state.generation)
        state.send(state.admit.vote)


def on_admit_called(state: State, event: AdmitCalled) -> None:
    """The caller is in `admit`: vote, unless this `admit` has already failed for all."""
    deadline_at = float("inf") if event.timeout_s is None else state.now + event.timeout_s
    assert state.admit is None, "two admits at once"
    state.admit = Admit(id=event.call, called_at=state.now, deadline_at=deadline_at)
    heard = state.vote_results.get(state.admit_index)
    if heard is not None:
        _finish(state, *heard)
        return
    vote = Vote(
        generation=state.generation,
        index=state.admit_index,
        calls_made=state.call_count,
        fresh=state.is_fresh,
    )
    state.is_fresh = False
    state.admit.vote = vote
    state.send(vote)


def give_up(state: State, outcome: VoteOutcome, detail: str) -> None:
    """The caller of `admit` cannot wait: ask for the end of it, for all."""
    if state.admit is None or state.admit.asked is not None:
        return
    state.admit.asked = GiveUpVote(
        generation=state.generation, index=state.admit_index, outcome=outcome, detail=detail
    )
    state.send(state.admit.asked)


def on_vote_result(state: State, message: VoteResult) -> None:
    """An `admit` ended without a new generation; perhaps one that we come to later."""
    if not recovery.take_decision(state, message) or message.index < state.admit_index:
        return
    view = state.view(message.generation, message.ring_order, message.counts)
    if message.index > state.admit_index or state.admit is None:
        if message.outcome is not VoteOutcome.SKIPPED:
            state.vote_results[message.index] = message, view
        return
    _finish(state, message, view)


def _finish(state: State, result: VoteResult, view: View) -> None:
    assert state.admit is not None
    call = state.admit.id
    asked = state.admit.asked
    waited_s = state.now - state.admit.called_at
    state.admit = None
    outcome, detail = result.outcome, result.detail
    if outcome is not VoteOutcome.SKIPPED:
        state.vote_results.pop(state.admit_index, None)
        state.admit_index += 1
    elif asked is not None:
        outcome, detail = asked.outcome, asked.detail
        state.is_fresh = True  # for the others it never happened
    facts: dict[str, Any] = {
        "generation": result.generation,
        "peers": result.culprits,
        "phase": "admit",
        "seconds": waited_s,
    }
    error: RinghaulError
    match outcome:
        case VoteOutcome.UNCHANGED | VoteOutcome.SKIPPED:
            state.effects.append(Complete(call=call, view=view))
            return
        case VoteOutcome.TIMEOUT:
            error = CallTimeout(f"admit: {detail}", **facts)
        case VoteOutcome.MISMATCH:
            error = MismatchError(detail, **facts)
        case VoteOutcome.INTERRUPTED:
            error = CollectiveAborted(f"admit was interrupted by {detail}", **facts)
    state.effects.append(Fail(call, error, view))
