import pytest

from ringhaul.core.peer.machine import PeerOptions
from ringhaul.core.peer.steps import (
    AdmitCalled,
    BeginTransfer,
    CallGivenUp,
    CloseCalled,
    Complete,
    Dial,
    DialFailed,
    Dialled,
    DropTransfer,
    Fail,
    Joined,
    LinkBroken,
    LinkUp,
    Started,
    Stop,
)
from ringhaul.core.steps import Close, LinkLost, Received, Send
from ringhaul.errors import (
    CallTimeout,
    CollectiveAborted,
    ConnectError,
    CoordinatorLost,
    EvictedError,
    MismatchError,
)
from ringhaul.ids import CallId, Generation, LinkId, OnLoss, OpKey
from ringhaul.testing.peer_script import ME, OTHER
from ringhaul.testing.peer_script import PeerScript as Script
from ringhaul.wire.codec import Envelope
from ringhaul.wire.coordinator_messages import (
    Began,
    Finished,
    GiveUp,
    LinkFailed,
    LinkReady,
    Outcome,
    Vote,
    VoteOutcome,
)
from ringhaul.wire.records import CollectiveKind, Signature
from ringhaul.wire.session_messages import (
    Evicted,
    Goodbye,
    Heartbeat,
    Hello,
    Leave,
    Refused,
    Resume,
    Resumed,
)


@pytest.fixture
def stranger() -> Script:
    return Script()


@pytest.fixture
def script() -> Script:
    member = Script()
    member.join()
    return member


def test_a_peer_says_hello_when_the_coordinator_is_reached(stranger: Script) -> None:
    stranger.step(Started())
    assert stranger.effects == [Dial()]

    stranger.step(Dialled(stranger.link))

    assert len(stranger.said(Hello)) == 1


def test_a_failed_dial_is_tried_again(stranger: Script) -> None:
    stranger.step(Started())
    stranger.step(DialFailed("refused"))

    assert Dial() in stranger.tick_at(0.25)


def test_a_coordinator_that_is_never_reached_is_a_connect_error(stranger: Script) -> None:
    stranger.step(Started())
    stranger.step(DialFailed("refused"))
    for second in range(1, 61):
        stranger.tick_at(float(second))

    (stop,) = stranger.those(Stop)
    assert isinstance(stop.error, ConnectError)


def test_a_refused_hello_is_a_connect_error(stranger: Script) -> None:
    stranger.step(Started())
    stranger.step(Dialled(stranger.link))
    stranger.hear(Refused(reason="full"), numbered=False)

    assert isinstance(stranger.those(Stop)[0].error, ConnectError)


def test_a_newcomer_joins_when_its_generation_is_opened(script: Script) -> None:
    assert script.those(Joined)[0].view.ring_order == (ME, OTHER)


def test_link_up_is_reported_for_the_proposal_under_way_only(script: Script) -> None:
    script.propose(2)
    script.step(LinkUp(Generation(1)))
    assert script.said(LinkReady) == []

    script.step(LinkUp(Generation(2)))

    assert script.said(LinkReady)[0].generation == 2


def test_data_moves_before_anybody_is_asked(script: Script) -> None:
    script.call()

    assert len(script.said(Began)) == len(script.those(BeginTransfer)) == 1


def test_a_finished_call_ends_with_its_verdict(script: Script) -> None:
    script.call()
    script.finish()
    assert len(script.said(Finished)) == 1
    assert script.those(Complete) == []

    script.verdict(Outcome.COMMITTED)

    assert script.those(Complete)[0].call == 1


def test_an_aborted_call_begins_again_in_the_next_generation(script: Script) -> None:
    script.call()
    script.finish()
    script.verdict(Outcome.ABORTED)
    assert len(script.those(DropTransfer)) == 1

    script.propose(2)
    script.open(2)

    assert script.those(BeginTransfer)[0].generation == 2
    assert script.said(Began)[0].key == OpKey(None, 0)


def test_a_transfer_of_an_ended_attempt_is_ignored(script: Script) -> None:
    script.call()
    script.propose(2)
    script.open(2)

    assert script.finish(generation=1) == []


def test_a_call_while_a_ring_is_tried_waits_until_it_is_open(script: Script) -> None:
    script.propose(2)
    assert script.call() == []

    script.open(2)

    assert len(script.those(BeginTransfer)) == 1


def test_who_comes_later_to_a_failed_key_fails_too(script: Script) -> None:
    script.verdict(Outcome.TIMEOUT)

    script.call()

    assert isinstance(script.those(Fail)[0].error, CallTimeout)
    assert script.said(Began) == []


def test_a_loss_under_raise_is_told_when_the_next_generation_is_open(script: Script) -> None:
    script.call()
    script.verdict(Outcome.LOST)
    assert script.those(Fail) == []

    script.propose(2)
    script.open(2)

    (fail,) = script.those(Fail)
    assert isinstance(fail.error, CollectiveAborted)
    assert fail.view is not None
    assert fail.view.generation == 2


def test_a_generation_has_one_ring_whatever_a_verdict_during_its_repair_names(
    script: Script,
) -> None:
    script.call()
    script.verdict(Outcome.TIMEOUT, ring_order=(ME,))  # who is left

    (fail,) = script.those(Fail)
    assert fail.view is not None
    assert fail.view.ring_order == (ME, OTHER)


def test_a_timeout_asks_the_coordinator_once(script: Script) -> None:
    script.call(timeout_s=0.5)
    script.tick_at(0.5)
    assert script.said(GiveUp)[0].outcome is Outcome.TIMEOUT
    assert script.those(Fail) == []

    script.tick_at(0.6)

    assert script.said(GiveUp) == []


def test_a_call_that_was_given_up_returns_if_the_verdict_is_that_it_is_done(
    script: Script,
) -> None:
    script.call()
    script.finish()
    script.step(CallGivenUp(CallId(1), Outcome.INTERRUPTED, "Ctrl-C"))
    script.verdict(Outcome.COMMITTED)

    assert len(script.those(Complete)) == 1


def test_an_admission_counts_operations_from_0_again(script: Script) -> None:
    script.call()
    script.finish()
    script.verdict(Outcome.COMMITTED)
    script.step(AdmitCalled(CallId(2)))
    script.propose(2)
    script.open(2, admission=True)
    assert script.those(Complete)[0].call == 2

    script.call(3)

    assert script.said(Began)[0].key == OpKey(None, 0)


def test_the_first_vote_of_a_newcomer_is_fresh_and_the_next_is_not(script: Script) -> None:
    script.step(AdmitCalled(CallId(1)))
    assert script.said(Vote)[0].fresh

    script.vote_result(VoteOutcome.SKIPPED)
    script.step(AdmitCalled(CallId(2)))

    assert not script.said(Vote)[0].fresh
    assert script.said(Vote)[0].index == 0


def test_a_vote_is_sent_again_in_the_generation_of_a_repair_after_what_begins_again(
    script: Script,
) -> None:
    script.call()
    script.step(AdmitCalled(CallId(2)))
    script.propose(2)
    script.open(2)

    names = [type(send.envelope.message) for send in script.those(Send)]
    assert names == [Began, Vote]
    assert script.said(Vote)[0].generation == 2


def test_an_admit_that_was_given_up_and_skipped_ends_with_its_error(script: Script) -> None:
    script.step(AdmitCalled(CallId(1), 0.5))
    script.tick_at(0.5)
    script.vote_result(VoteOutcome.SKIPPED)

    assert isinstance(script.those(Fail)[0].error, CallTimeout)


def test_who_comes_later_to_a_failed_admit_fails_too(script: Script) -> None:
    script.vote_result(VoteOutcome.MISMATCH)

    script.step(AdmitCalled(CallId(1)))

    assert isinstance(script.those(Fail)[0].error, MismatchError)


def test_a_broken_link_is_reported_once_and_a_refusal_after_it(script: Script) -> None:
    broken = LinkBroken(neighbour=OTHER, refused=False, reason="reset")
    script.step(broken)
    assert len(script.said(LinkFailed)) == 1
    assert script.step(broken) == []

    script.step(LinkBroken(neighbour=OTHER, refused=True, reason="refused"))

    assert script.said(LinkFailed)[0].refused


def test_a_ping_is_answered_at_once(script: Script) -> None:
    script.hear(Heartbeat(ping=3), numbered=False)

    assert script.said(Heartbeat)[0].pong == 3


def test_a_lost_connection_is_redialled_and_the_session_resumed(script: Script) -> None:
    assert Dial() in script.step(LinkLost(script.link, "reset"))
    script.call()
    assert script.said(Began) == []  # not connected; operations go on
    script.link = LinkId(2)
    script.step(Dialled(script.link))
    assert len(script.said(Resume)) == 1

    script.hear(Resumed(), numbered=False)

    assert len(script.said(Began)) == 1


def test_what_arrives_twice_is_handled_once(script: Script) -> None:
    script.call()
    script.finish()
    script.verdict(Outcome.COMMITTED)
    script.seq -= 1

    assert script.verdict(Outcome.COMMITTED) == []


def test_a_coordinator_of_another_run_is_not_believed(script: Script) -> None:
    envelope = Envelope(message=Heartbeat(), run_id=b"x" * 16, incarnation=1)
    script.step(Received(script.link, envelope))

    assert len(script.those(Close)) == 1


def test_an_unknown_session_means_evicted(script: Script) -> None:
    script.hear(Refused(reason="who?", unknown_session=True), numbered=False)

    assert isinstance(script.those(Stop)[0].error, EvictedError)


def test_an_eviction_is_final(script: Script) -> None:
    script.hear(Evicted(reason="silent"), numbered=False)
    assert isinstance(script.those(Stop)[0].error, EvictedError)

    assert script.call() == []


def test_a_silent_coordinator_is_redialled_after_8_s(script: Script) -> None:
    for second in range(1, 9):
        script.tick_at(float(second))

    assert len(script.those(Close)) == 1
    assert Dial() in script.effects


def test_a_coordinator_beyond_the_grace_is_lost(script: Script) -> None:
    script.step(LinkLost(script.link, "reset"))
    for second in range(1, 301):
        script.tick_at(float(second))

    assert isinstance(script.those(Stop)[0].error, CoordinatorLost)


def test_closing_says_goodbye_and_stops_without_error(script: Script) -> None:
    script.step(CloseCalled())
    assert len(script.said(Leave)) == 1

    script.hear(Goodbye(), numbered=False)

    assert script.those(Stop) == [Stop(None)]


def test_closing_waits_for_the_goodbye_not_long(script: Script) -> None:
    script.step(CloseCalled())
    script.tick_at(2.0)

    assert script.those(Stop) == [Stop(None)]


def test_too_few_members_fail_the_call_at_once() -> None:
    script = Script()
    script.peer.state.options = PeerOptions(
        coordinator="host:1", name="me", group=0, addresses=(), min_world_size=3
    )
    script.join()
    script.call()

    assert "call admit" in str(script.those(Fail)[0].error)


def test_on_loss_is_part_of_the_signature() -> None:
    assert Signature(kind=CollectiveKind.BARRIER) != Signature(
        kind=CollectiveKind.BARRIER, on_loss=OnLoss.RAISE
    )


def test_deadlines_on_a_stalled_clock_are_met_by_the_tick_they_name(script: Script) -> None:
    script.tick_at(5.3)  # 2.3 s more than a tick may be late: they do not count
    at = script.peer.next_deadline()
    script.tick_at(at)

    assert script.peer.next_deadline() > at
