"""A peer's state machine: `step(event, now)` and `next_deadline()`, no other way in.

This file dispatches, keeps the clock and checks the invariants. It knows no sockets, threads
or arrays: events say what happened, effects say what to do.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import assert_never

from ringhaul.core.clock import RunningClock
from ringhaul.core.peer import collective, control, membership
from ringhaul.core.peer.model import PeerOptions, Phase, State
from ringhaul.core.peer.steps import (
    AdmitCalled,
    BatchFailed,
    CallGivenUp,
    CloseCalled,
    CollectiveCalled,
    DialFailed,
    Dialled,
    Effect,
    Event,
    LinkBroken,
    LinkMeasured,
    LinkUp,
    Started,
    TransferDone,
)
from ringhaul.core.steps import Close, LinkLost, Received, Tick
from ringhaul.errors import InvariantError, ProtocolError
from ringhaul.ids import LinkId
from ringhaul.wire.codec import Envelope
from ringhaul.wire.coordinator_messages import (
    Opened,
    Outcome,
    Proposal,
    StillWaiting,
    SyncPlan,
    Verdict,
    VoteOutcome,
    VoteResult,
)
from ringhaul.wire.session_messages import Evicted, Goodbye, Heartbeat, Refused, Resumed, Welcome

__all__ = ["Peer", "PeerOptions"]


#: Invariants of more calls than this are checked at each tick, not at each full check.
CHECKED_CALLS_MAX = 64
#: All is checked after so many steps that begin or end a call and nothing else, and after
#: every other step.
CHECK_EVERY = 64


class Peer:
    """One peer's view of the run, and what its callers wait for."""

    def __init__(self, options: PeerOptions, *, check_every: int = CHECK_EVERY) -> None:
        self.state = State(options)
        #: No timer is due before this, whatever plain steps follow; None: not known.
        self._quiet_until: float | None = None
        self._check_every = check_every
        self._unchecked_count = 0
        self._clock = RunningClock()
        self._story: deque[tuple[float, Event]] = deque(maxlen=50)

    def step(self, event: Event, now: float) -> list[Effect]:
        """Take one event at time `now`; return what to do about it, in order.

        What the coordinator may not send now closes the connection, and changes nothing
        else. Never raises but `InvariantError`, which is our bug.
        """
        self._story.append((now, event))
        state = self.state
        state.now = self._clock.advance(now)
        state.effects = []
        if state.phase is Phase.STOPPED:
            return []
        is_plain = False
        match event:
            case Received(link, envelope):
                if link == state.link:
                    self._on_received(link, envelope)
                    is_plain = type(envelope.message) is Verdict and link == state.link
            case TransferDone():
                collective.on_transfer_done(state, event)
                is_plain = True
            case CollectiveCalled():
                collective.on_called(state, event)
                is_plain = event.timeout_s is None
            case LinkLost(link, reason):
                control.on_link_lost(state, link, reason)
            case Tick():
                while due := [act for at, act in self._timers() if at <= state.now]:
                    for act in due:
                        act(state)
            case _:
                self._on_runner(event)
        if not is_plain:
            self._quiet_until = None
        self._unchecked_count += 1
        if not is_plain or self._unchecked_count >= self._check_every:
            self._unchecked_count = 0
            self._check(ticked=isinstance(event, Tick))
        return state.effects

    def next_deadline(self) -> float:
        """When a `Tick` is due, on the clock of `now`; infinite once stopped.

        Plain steps only put timers off: after them it may come too early, which does no harm.
        """
        at = self._quiet_until
        if at is None:
            at = min((at for at, _ in self._timers()), default=float("inf"))
            if self.state.phase is not Phase.STOPPED:
                at = min(at, self.state.now + 1.0)  # so that the clock sees gaps
            self._quiet_until = at
        return self._clock.caller_time(at)

    def _timers(self) -> Iterator[tuple[float, Callable[[State], None]]]:
        """Every deadline and what happens then. The only place that computes one."""
        state = self.state
        yield from control.timers(state)
        if state.phase is Phase.MEMBER:
            yield from collective.timers(state)
            if state.admit is not None and state.admit.asked is None:
                yield state.admit.deadline_at, _on_admit_timeout

    def _on_runner(
        self,
        event: Started
        | Dialled
        | DialFailed
        | AdmitCalled
        | CallGivenUp
        | BatchFailed
        | CloseCalled
        | LinkUp
        | LinkBroken
        | LinkMeasured,
    ) -> None:
        state = self.state
        match event:
            case Started():
                control.start(state)
            case Dialled():
                control.on_dialled(state, event)
            case DialFailed(reason):
                control.on_dial_failed(state, reason)
            case AdmitCalled():
                membership.on_admit_called(state, event)
            case CallGivenUp():
                if state.admit is not None and state.admit.id == event.call:
                    membership.give_up(state, VoteOutcome.INTERRUPTED, event.detail)
                else:
                    collective.on_given_up(state, event)
            case BatchFailed():
                collective.on_batch_failed(state, event)
            case CloseCalled():
                control.leave(state)
            case LinkUp():
                membership.on_link_up(state, event)
            case LinkBroken():
                membership.on_link_broken(state, event)
            case LinkMeasured():
                state.outgoing_bytes_per_s = event.outgoing_bytes_per_s
            case _:
                assert_never(event)

    def _on_received(self, link: LinkId, envelope: Envelope) -> None:
        state = self.state
        state.heard_at = state.now
        try:
            if state.phase is not Phase.STRANGER and (
                envelope.run_id != state.run_id or envelope.incarnation < state.incarnation
            ):
                raise ProtocolError("a coordinator of another run, or an older one, answers")
            if state.session.take(envelope):
                if state.phase is not Phase.STRANGER:
                    state.incarnation = envelope.incarnation
                self._on_message(envelope)
        except ProtocolError as error:
            state.effects.append(Close(link, str(error)))
            control.on_link_lost(state, link, str(error))

    def _on_message(self, envelope: Envelope) -> None:
        state = self.state
        match envelope.message:
            case Welcome() as welcome:
                control.on_welcome(state, envelope, welcome)
            case Refused() as refused:
                control.on_refused(state, refused)
            case Evicted() as evicted:
                control.on_evicted(state, evicted)
            case message if state.phase is Phase.STRANGER:
                raise ProtocolError(f"{type(message).__name__} before welcome")
            case Resumed() as resumed:
                control.on_resumed(state, resumed)
            case Heartbeat() as heartbeat:
                control.on_heartbeat(state, heartbeat)
            case Goodbye():
                state.stop(None)
            case Proposal() as proposal:
                self._on_proposal(proposal)
            case Opened() as opened:
                self._on_opened(opened)
            case Verdict() as verdict:
                collective.on_verdict(state, verdict)
            case SyncPlan() as plan:
                collective.on_sync_plan(state, plan)
            case VoteResult() as result:
                membership.on_vote_result(state, result)
            case StillWaiting() as waiting:
                missing = ", ".join(waiting.missing) or "more peers to come"
                state.log(
                    f"{waiting.what} waits since {waiting.waited_s:.0f} s for {missing}",
                    urgent=True,
                )
            case other:
                raise ProtocolError(f"a coordinator does not send {type(other).__name__}")

    def _on_proposal(self, message: Proposal) -> None:
        if self.state.peer_id not in message.ring_order:
            raise ProtocolError("a ring was proposed that this peer is not in")
        membership.on_proposal(self.state, message)

    def _on_opened(self, message: Opened) -> None:
        proposed = self.state.proposal
        if proposed is None or proposed.generation != message.generation:
            raise ProtocolError(f"generation {message.generation} opened, but was not proposed")
        if proposed.ring_order != message.ring_order:
            raise ProtocolError(f"generation {message.generation} opened with another ring")
        membership.on_opened(self.state, message)

    def _check(self, *, ticked: bool) -> None:
        """Invariants that hold between any two steps."""
        state = self.state
        # a step takes as long in a window of thousands of calls as in one of a few
        is_full = ticked or len(state.calls) <= CHECKED_CALLS_MAX
        calls = list(state.calls.values()) if is_full else []
        for holds, broken in (
            (len({c.id for c in calls}) == len(calls), "two operations for one call"),
            (
                all(c.attempt in (None, state.generation) for c in calls),
                "an attempt outside the open generation",
            ),
            (
                state.proposal is None or all(c.attempt is None for c in calls),
                "an attempt while a new ring is tried",
            ),
            (
                state.proposal is None or state.proposal.generation > state.generation,
                "a proposal that is stale",
            ),
            (
                state.phase is not Phase.MEMBER or state.peer_id in state.ring_order,
                "a member that is not in its ring",
            ),
            (
                state.phase is not Phase.MEMBER
                or state.link is not None
                or state.is_dialling
                or state.redial_at is not None,
                "nobody reaches for the coordinator",
            ),
            (
                not ticked or min((at for at, _ in self._timers()), default=1e300) > state.now,
                "a Tick left work due",
            ),
            (
                self._quiet_until is None
                or self._quiet_until <= min((at for at, _ in self._timers()), default=1e300),
                "a timer is due before the deadline",
            ),
        ):
            if not holds:
                story = [f"t={now:.3f} {event}" for now, event in self._story]
                raise InvariantError(broken, story)


def _on_admit_timeout(state: State) -> None:
    membership.give_up(state, VoteOutcome.TIMEOUT, "admit took longer than its timeout_s")


#: Outcomes that a runner may give up a call with.
GIVE_UP_OUTCOMES = (Outcome.INTERRUPTED, Outcome.UNFIT, Outcome.FAILED, Outcome.NO_STATE)
