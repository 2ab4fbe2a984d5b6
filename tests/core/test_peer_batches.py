"""Steps of a peer's machine with many operations: batches, views, deadlines."""

import pytest

from ringhaul.core.peer.steps import (
    AdmitCalled,
    BatchFailed,
    BeginTransfer,
    CollectiveCalled,
    Complete,
    Fail,
)
from ringhaul.ids import BATCH_TAG, CallId, OpKey
from ringhaul.testing.peer_script import SUM
from ringhaul.testing.peer_script import PeerScript as Script
from ringhaul.wire.coordinator_messages import Began, GiveUp, Outcome, Vote, VoteOutcome


@pytest.fixture
def script() -> Script:
    member = Script()
    member.join()
    return member


def call_in_batch(script: Script, number: int, index: int) -> list[Began]:
    script.step(CollectiveCalled(call=CallId(number), tag=None, signature=SUM, batch_index=index))
    return script.said(Began)


def test_a_batch_is_one_call_whose_operations_have_keys_of_their_own(script: Script) -> None:
    script.call(1)
    begun = [call_in_batch(script, number, number - 2)[0] for number in (2, 3, 4)]
    script.call(5)

    assert [began.key for began in begun] == [
        OpKey(None, 1), OpKey(f"{BATCH_TAG}1", 1), OpKey(f"{BATCH_TAG}1", 2)
    ]  # fmt: skip
    assert [began.call_index for began in begun] == [1, 1, 1]
    assert script.said(Began)[0].key == OpKey(None, 2)
    assert script.said(Began)[0].call_index == 2


def test_what_a_failed_batch_leaves_undone_is_given_up(script: Script) -> None:
    call_in_batch(script, 1, 0)

    script.step(BatchFailed(1, 2, "why"))

    assert [give_up.key for give_up in script.said(GiveUp)] == [
        OpKey(f"{BATCH_TAG}0", 1), OpKey(f"{BATCH_TAG}0", 2)
    ]  # fmt: skip
    assert {give_up.outcome for give_up in script.said(GiveUp)} == {Outcome.FAILED}


def test_a_batch_that_ends_early_leaves_the_numbers_of_later_calls_as_they_are(
    script: Script,
) -> None:
    call_in_batch(script, 1, 0)
    script.step(BatchFailed(1, 2, "why"))

    script.call(2)
    assert script.said(Began)[0].key == OpKey(None, 1)

    script.step(AdmitCalled(CallId(3)))
    assert script.said(Vote)[0].calls_made == 2


def test_operations_of_a_batch_begin_again_in_their_order(script: Script) -> None:
    for index in range(3):
        call_in_batch(script, index + 1, index)
    script.propose(2)
    script.open(2)

    assert [begin.call for begin in script.those(BeginTransfer)] == [1, 2, 3]


def test_views_are_numbered_as_they_are_heard_of(script: Script) -> None:
    indices = []
    for number in (1, 2, 3):
        script.call(number)
        script.finish(number)
    for ordinal in (2, 0, 1):
        script.verdict(Outcome.COMMITTED, ordinal=ordinal)
        indices.append(script.those(Complete)[0].view.index)

    assert indices == sorted(indices)
    assert len(set(indices)) == 3


def test_who_comes_later_to_a_failed_key_sees_the_view_of_its_time(script: Script) -> None:
    script.verdict(Outcome.TIMEOUT, ordinal=1)
    script.call(1)
    script.finish(1)
    script.verdict(Outcome.COMMITTED, ordinal=0)
    newer = script.those(Complete)[0].view

    script.call(2)

    (fail,) = script.those(Fail)
    assert fail.view is not None
    assert fail.view.index < newer.index


def test_who_comes_later_to_a_failed_admit_sees_the_view_of_its_time(script: Script) -> None:
    script.vote_result(VoteOutcome.MISMATCH)
    script.call(1)
    script.finish(1)
    script.verdict(Outcome.COMMITTED)
    newer = script.those(Complete)[0].view

    script.step(AdmitCalled(CallId(2)))

    (fail,) = script.those(Fail)
    assert fail.view is not None
    assert fail.view.index < newer.index


def test_a_failure_of_a_call_that_is_over_here_is_not_kept(script: Script) -> None:
    script.call(1)
    script.finish(1)
    script.verdict(Outcome.COMMITTED, ordinal=0)

    script.verdict(Outcome.TIMEOUT, ordinal=0)

    assert not script.peer.state.failures


def test_each_of_many_deadlines_is_kept_and_those_of_ended_calls_are_not(script: Script) -> None:
    for number, timeout_s in enumerate((0.9, 0.5, 0.7), start=1):
        script.call(number, timeout_s=timeout_s)
    script.finish(2)
    script.verdict(Outcome.COMMITTED, ordinal=1)
    given_up = []
    for at in (0.6, 0.75, 0.95, 1.5):
        script.tick_at(at)
        given_up.append([give_up.key.ordinal for give_up in script.said(GiveUp)])

    assert given_up == [[], [2], [0], []]
