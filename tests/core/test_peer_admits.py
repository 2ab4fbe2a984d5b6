"""Admits that ended before their caller came: remembered, but not without bound."""

import pytest

from ringhaul.core.peer import membership
from ringhaul.core.peer.steps import AdmitCalled, Fail
from ringhaul.errors import CallTimeout
from ringhaul.ids import CallId
from ringhaul.testing.peer_script import PeerScript as Script
from ringhaul.wire.coordinator_messages import Vote, VoteOutcome


@pytest.fixture
def script() -> Script:
    member = Script()
    member.join()
    return member


def test_admits_that_time_out_elsewhere_do_not_pile_up(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "VOTE_RESULTS_KEPT_MAX", 4)

    for index in range(10):
        script.vote_result(VoteOutcome.TIMEOUT, index=index)

    assert len(script.peer.state.vote_results) == 4


def test_who_comes_to_an_admit_whose_end_was_forgotten_fails_too_and_catches_up(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "VOTE_RESULTS_KEPT_MAX", 4)
    for index in range(10):
        script.vote_result(VoteOutcome.TIMEOUT, index=index)

    for number in range(10):
        script.step(AdmitCalled(CallId(number)))
        assert [type(fail.error) for fail in script.those(Fail)] == [CallTimeout]
    assert script.peer.state.vote_results == {}

    script.step(AdmitCalled(CallId(10)))
    assert script.said(Vote)[0].index == 10
