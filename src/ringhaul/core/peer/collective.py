"""The peer's half of a collective: attempts, verdicts, and giving up.

Decides the key of a call, when an attempt begins, and how a call ends.
"""

import heapq
from collections.abc import Callable, Iterator
from functools import partial

from ringhaul.core.peer import recovery
from ringhaul.core.peer.model import Call, Failure, State
from ringhaul.core.peer.steps import (
    BatchFailed,
    BeginTransfer,
    CallGivenUp,
    CollectiveCalled,
    Complete,
    DropTransfer,
    Fail,
    FollowSyncPlan,
    ForgetKey,
    TransferDone,
    View,
)
from ringhaul.errors import (
    CallTimeout,
    CodecError,
    CollectiveAborted,
    MismatchError,
    RinghaulError,
    StateError,
)
from ringhaul.ids import BATCH_TAG, OpKey, Rank
from ringhaul.limits import VERDICTS_KEPT_MAX
from ringhaul.wire.coordinator_messages import (
    Finished,
    GiveUp,
    Outcome,
    SyncPlan,
    Verdict,
)
from ringhaul.wire.records import CollectiveKind, Content


def on_called(state: State, event: CollectiveCalled) -> None:
    """The caller is in a collective: it gets its key, which never changes."""
    if event.batch_index:
        key = _batch_key(state, event.batch_index)
    else:
        key = OpKey(event.tag, state.ordinals[event.tag])
        state.ordinals[event.tag] += 1
        state.call_count += 1
    deadline_at = float("inf") if event.timeout_s is None else state.now + event.timeout_s
    call = Call(
        id=event.call,
        key=key,
        call_index=state.call_count - 1,
        asked=event,
        called_at=state.now,
        deadline_at=deadline_at,
    )
    if event.timeout_s is not None:
        heapq.heappush(state.deadlines, (deadline_at, call.id, call))
    state.is_fresh = False
    state.calls[key] = call
    if key in state.failures:
        _maybe_fail(state, call)
    elif state.proposal is None:
        _begin(state, call)


def _batch_key(state: State, index: int) -> OpKey:
    """Of an operation of the last untagged call, which is a batch.

    The first has the key of a single call, so that differing calls are noticed. The others do
    not count: members stay in step when a batch ends early, or was not the same on all.
    """
    ordinal = state.ordinals[None] - 1
    return OpKey(f"{BATCH_TAG}{ordinal}", index) if index else OpKey(None, ordinal)


def _begin(state: State, call: Call) -> None:
    """Start an attempt in the open generation; nobody is asked first."""
    required = state.options.min_world_size
    if len(state.ring_order) < required:
        text = f"{len(state.ring_order)} members are left, {required} are required: call admit"
        error = CollectiveAborted(
            text,
            generation=state.generation,
            tag=call.key.tag,
            phase=call.phase,
            seconds=state.now - call.called_at,
        )
        del state.calls[call.key]
        state.effects.append(Fail(call.id, error))
        return
    call.attempt = state.generation
    call.attempts += 1
    call.is_finished = False
    call.elected = None
    state.send(recovery.began_of(call))
    match call.asked.signature.kind:
        case CollectiveKind.BARRIER:
            _finish(state, call, None)
        case CollectiveKind.SYNC_STATE:
            pass  # data moves once the coordinator has elected
        case _:
            _begin_transfer(state, call)


def _begin_transfer(state: State, call: Call) -> None:
    root = call.asked.signature.root
    if root is not None and root not in state.ring_order:
        return  # it was lost since the caller named it: the coordinator says so to all
    begin = BeginTransfer(
        call=call.id,
        key=call.key,
        generation=state.generation,
        rank=state.rank,
        world_size=len(state.ring_order),
        root=None if root is None else Rank(state.ring_order.index(root)),
    )
    state.effects.append(begin)


def _finish(state: State, call: Call, digest: bytes | None) -> None:
    assert call.attempt is not None
    call.is_finished = True
    call.digest = digest
    state.send(Finished(generation=call.attempt, key=call.key, digest=digest))


def on_transfer_done(state: State, event: TransferDone) -> None:
    """All data is here: tell the coordinator, wait for the verdict."""
    call = state.call_by_id(event.call)
    if call is None or call.attempt != event.generation or call.is_finished:
        return
    call.fetched = call.elected or call.fetched
    _finish(state, call, event.digest)


def on_sync_plan(state: State, message: SyncPlan) -> None:
    """A state was elected: fetch it, or keep ours and serve it."""
    call = state.calls.get(message.key)
    if call is None or call.attempt != message.generation or call.elected:
        return
    call.elected = Content(message.revision, message.digest)
    state.effects.append(FollowSyncPlan(call.id, message))


def on_opened(state: State, view: View) -> None:
    """A generation is open: errors that wait for it are told, the other calls begin again."""
    for failure in state.failures.values():
        failure.view = failure.view or view
    for call in sorted(state.calls.values(), key=lambda call: call.call_index):
        if call.key in state.failures:
            _maybe_fail(state, call)
        elif call.attempt is None:
            _begin(state, call)


def on_verdict(state: State, message: Verdict) -> None:
    """The coordinator has decided. It may be about a key that our caller has yet to come to."""
    if not recovery.take_decision(state, message):
        return
    call = state.calls.get(message.key)
    if message.outcome is not Outcome.ABORTED:
        state.given_up.pop(message.key, None)
    view = state.view(message.generation, message.ring_order, message.counts)
    match message.outcome:
        case Outcome.COMMITTED:
            if call is not None and call.attempt is not None and call.is_finished:
                del state.calls[call.key]
                state.committed = call.elected or state.committed
                state.effects.append(Complete(call=call.id, view=view, attempts=call.attempts))
        case Outcome.ABORTED:
            if call is not None and call.attempt == message.generation:
                _drop(state, call)
        case _:
            state.effects.append(ForgetKey(message.key))
            if call is None and message.key.ordinal < state.ordinals[message.key.tag]:
                return  # our caller skipped it
            # after a loss the caller shall find the next generation open; if who was lost is
            # not in the ring any more, this is it
            is_repaired = not set(message.culprits) & set(message.ring_order)
            known = view if message.outcome is not Outcome.LOST or is_repaired else None
            state.failures[message.key] = Failure(verdict=message, view=known)
            while len(state.failures) > VERDICTS_KEPT_MAX:
                state.failures.popitem(last=False)
            if call is not None:
                call.ended_in = call.phase
                _drop(state, call)
                _maybe_fail(state, call)


def _drop(state: State, call: Call) -> None:
    if call.attempt is not None:
        call.attempt = None
        call.is_finished = False
        state.effects.append(DropTransfer(call.id))


def _maybe_fail(state: State, call: Call) -> None:
    """End a call whose key has failed for all, if the view is known."""
    failure = state.failures[call.key]
    if failure.view is None:
        return
    del state.failures[call.key]
    del state.calls[call.key]
    state.effects.append(Fail(call.id, error_of(failure.verdict, call, state.now), failure.view))


def error_of(verdict: Verdict, call: Call, now: float) -> RinghaulError:
    """The exception that a verdict means for the caller."""
    generation, tag, peers = verdict.generation, verdict.key.tag, verdict.culprits
    text = verdict.detail
    kind: type[RinghaulError]
    match verdict.outcome:
        case Outcome.LOST:
            kind = CollectiveAborted
            text += "; nobody got a result, the next generation is open: call again"
        case Outcome.INTERRUPTED:
            kind = CollectiveAborted
            text = f"interrupted by {text}; nobody got a result"
        case Outcome.TIMEOUT:
            kind = CallTimeout
        case Outcome.MISMATCH:
            kind = MismatchError
        case Outcome.NO_STATE:
            kind = StateError
        case Outcome.UNFIT:
            kind = CodecError
            text += "; nobody got a result"
        case _:
            kind = RinghaulError
    return kind(
        text,
        generation=generation,
        tag=tag,
        peers=peers,
        phase=call.ended_in or call.phase,
        seconds=now - call.called_at,
    )


def give_up(state: State, call: Call, outcome: Outcome, detail: str) -> None:
    """Ask for the end of an operation, for all; the verdict may still be that it is done."""
    if call.gave_up:
        return
    call.gave_up = True
    _ask_for_the_end(state, call.key, outcome, detail)


def _ask_for_the_end(state: State, key: OpKey, outcome: Outcome, detail: str) -> None:
    message = GiveUp(generation=state.generation, key=key, outcome=outcome, detail=detail[:1000])
    state.given_up[key] = message
    state.send(message)


def on_given_up(state: State, event: CallGivenUp) -> None:
    """The caller was interrupted, or cannot do its part."""
    call = state.call_by_id(event.call)
    if call is not None:
        give_up(state, call, event.outcome, event.detail)


def on_batch_failed(state: State, event: BatchFailed) -> None:
    """The caller will not come to the rest of its batch."""
    for index in range(event.first, event.first + event.count):
        key = _batch_key(state, index)
        if state.failures.pop(key, None) is None:
            _ask_for_the_end(state, key, Outcome.FAILED, event.detail)


def timers(state: State) -> Iterator[tuple[float, Callable[[State], None]]]:
    """The next deadline that a caller has set. Thousands of calls may be open."""
    deadlines = state.deadlines
    while deadlines and _is_over(state, deadlines[0][2]):
        heapq.heappop(deadlines)
    if deadlines:
        deadline_at, _, call = deadlines[0]
        yield deadline_at, partial(_on_timeout, call=call)


def _is_over(state: State, call: Call) -> bool:
    return call.gave_up or state.calls.get(call.key) is not call


def _on_timeout(state: State, *, call: Call) -> None:
    timeout_s = call.asked.timeout_s
    text = f"{call.asked.signature} as operation {call.key} took longer than {timeout_s:g} s"
    give_up(state, call, Outcome.TIMEOUT, text)
