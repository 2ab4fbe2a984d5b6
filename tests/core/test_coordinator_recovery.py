"""Steps of a coordinator that was started again: what its members tell decides how it goes on."""

from dataclasses import replace

import pytest

from ringhaul.core.coordinator import recovery
from ringhaul.ids import Generation, PeerId
from ringhaul.testing.restart_script import (
    BEGAN,
    COMMITTED,
    COUNTS,
    FINISHED,
    OPENED,
    REPORT,
    RING,
    Again,
)
from ringhaul.wire.coordinator_messages import (
    LinkFailed,
    Opened,
    Outcome,
    Proposal,
    Ring,
    Verdict,
    VoteOutcome,
    VoteResult,
)
from ringhaul.wire.records import (
    CollectiveKind,
    Content,
    Signature,
    StateReport,
    Strategy,
)
from ringhaul.wire.session_messages import Evicted, Leave, Refused, Resumed


@pytest.fixture
def again() -> Again:
    """Without a journal."""
    return Again()


def missing(again: Again) -> dict[str, str]:
    assert again.coordinator.run.recovery is not None
    return {str(peer): why for peer, why in again.coordinator.run.recovery.missing.items()}


def test_who_comes_back_begins_its_session_anew(again: Again) -> None:
    again.come("a")

    assert again.heard("a", Resumed) == [Resumed(reset=True)]


def test_a_session_that_is_reset_already_is_resumed_as_any(again: Again) -> None:
    again.back("a")
    again.come("a", ack=0)

    assert again.heard("a", Resumed) == [Resumed(reset=False)]


def test_nothing_is_concluded_while_a_member_is_awaited(again: Again) -> None:
    again.back("a", BEGAN, FINISHED)
    again.back("b", BEGAN, FINISHED)
    again.wait(9.0, heard=("a", "b"))

    assert again.verdicts("a") == again.verdicts("b") == []
    assert again.coordinator.run.recovery is not None


def test_what_all_have_finished_is_committed(again: Again) -> None:
    for name in RING:
        again.back(name, BEGAN, FINISHED)
    again.wait(3.0, heard=RING)

    assert [again.verdicts(name) for name in RING] == [[Outcome.COMMITTED]] * 3
    assert again.heard("a", Verdict)[0].number == 11
    assert again.heard("a", Proposal) == []


def test_what_is_under_way_goes_on_and_is_committed_later(again: Again) -> None:
    again.back("a", BEGAN, FINISHED)
    again.back("b", BEGAN, FINISHED)
    again.back("c", BEGAN)
    again.wait(3.0, heard=RING)
    assert again.verdicts("a") == []

    again.say("c", FINISHED)
    assert [again.verdicts(name) for name in RING] == [[Outcome.COMMITTED]] * 3
    assert again.heard("a", Proposal) == []


def test_messages_that_come_after_the_report_are_handled_when_all_are_there(again: Again) -> None:
    for name in RING:
        again.back(name, BEGAN)
        again.say(name, FINISHED)
    again.wait(3.0, heard=RING)

    assert [again.verdicts(name) for name in RING] == [[Outcome.COMMITTED]] * 3


@pytest.mark.parametrize("outcome", [Outcome.COMMITTED, Outcome.TIMEOUT, Outcome.MISMATCH])
def test_a_verdict_that_one_has_heard_stands_for_all(again: Again, outcome: Outcome) -> None:
    verdict = replace(COMMITTED, outcome=outcome)
    again.back("a", verdict, report=replace(REPORT, last_number=11))
    again.back("b", BEGAN, FINISHED)
    again.back("c", BEGAN, FINISHED)
    again.wait(3.0, heard=RING)

    assert again.heard("a", Verdict) == []
    assert again.heard("b", Verdict) == again.heard("c", Verdict) == [verdict]


def test_a_member_that_comes_to_a_key_with_a_verdict_later_is_told_it(again: Again) -> None:
    verdict = replace(COMMITTED, outcome=Outcome.TIMEOUT)
    again.back("a", verdict, report=replace(REPORT, last_number=11))
    again.back("b", report=replace(REPORT, call_count=0))
    again.back("c", BEGAN)
    again.say("b", BEGAN)  # before it has heard
    again.wait(3.0, heard=RING)

    assert again.heard("b", Verdict) == [verdict]
    assert again.coordinator.run.groups[0].open == {}


def test_an_abort_that_one_has_heard_is_followed_by_a_new_generation(again: Again) -> None:
    verdict = replace(COMMITTED, outcome=Outcome.ABORTED)
    report = replace(REPORT, last_number=11, needs_opening=True)
    again.back("a", verdict, report=report)
    again.back("b", BEGAN, FINISHED)
    again.back("c", BEGAN)
    again.wait(3.0, heard=RING)

    assert again.heard("b", Verdict)[0] == verdict
    assert [again.heard(name, Proposal)[0].generation for name in RING] == [105, 105, 105]


def test_an_attempt_that_one_has_heard_is_aborted_is_not_committed(again: Again) -> None:
    """It heard so before it came to the call, which then went on with the others' attempts."""
    verdict = replace(COMMITTED, outcome=Outcome.ABORTED)
    again.back("a", verdict, BEGAN, FINISHED, report=replace(REPORT, last_number=11))
    again.back("b", BEGAN, FINISHED)
    again.back("c", BEGAN, FINISHED)
    again.wait(3.0, heard=RING)

    assert again.heard("a", Verdict) == []
    assert again.heard("b", Verdict) == again.heard("c", Verdict) == [verdict]
    assert [again.heard(name, Proposal)[0].generation for name in RING] == [105, 105, 105]


def test_who_has_not_finished_what_others_committed_is_out(again: Again) -> None:
    again.back("a", COMMITTED, report=replace(REPORT, last_number=11))
    again.back("b", BEGAN, FINISHED)
    again.back("c", BEGAN)
    again.wait(3.0, heard=RING)

    assert "without it" in again.heard("c", Evicted)[0].reason
    assert again.heard("a", Proposal)[0].ring_order == RING[:2]


def test_a_member_that_does_not_come_back_is_lost_after_the_grace(again: Again) -> None:
    again.back("a", BEGAN, FINISHED)
    again.back("b", BEGAN, FINISHED)
    again.wait(10.0, heard=("a", "b"))

    (verdict,) = again.heard("a", Verdict)
    assert verdict.outcome is Outcome.COMMITTED
    assert verdict.ring_order == RING  # it contributed
    assert again.heard("a", Proposal)[0].ring_order == RING[:2]


def test_a_second_witness_ends_the_wait(again: Again) -> None:
    again.back("a", BEGAN)
    refused = LinkFailed(
        generation=Generation(4), neighbour=PeerId("c"), refused=True, reason="refused"
    )
    again.back("b", BEGAN, refused)
    again.wait(2.9, heard=("a", "b"))
    assert again.coordinator.run.recovery is not None

    again.wait(0.2, heard=("a", "b"))
    assert again.verdicts("a") == [Outcome.ABORTED]
    assert again.heard("a", Proposal)[0].ring_order == RING[:2]


def test_what_a_member_says_after_it_has_left_concerns_nobody(again: Again) -> None:
    again.back("a", BEGAN)
    again.back("b", BEGAN)
    again.back("c")
    for message in (Leave(), BEGAN, FINISHED):
        again.say("c", message)
    again.wait(3.0, heard=RING)

    assert again.ring() == RING[:2]
    assert again.heard("a", Proposal)[0].ring_order == RING[:2]


def test_who_comes_back_too_late_is_out_for_good(again: Again) -> None:
    again.back("a")
    again.back("b")
    again.wait(10.0, heard=("a", "b"))
    again.come("c")

    assert again.heard("c", Refused)[0].unknown_session


def test_a_member_that_has_not_heard_of_the_opening_is_told(again: Again) -> None:
    before = replace(OPENED, generation=Generation(3), admissions=1, opened_after=4)
    late = replace(
        REPORT,
        opened=before,
        admitted_generation=Generation(3),
        proposal=Ring(Generation(4), RING),
        last_number=9,
        needs_opening=True,
    )
    again.back("a")
    again.back("b", report=late)
    again.back("c", report=replace(late, opened=None))
    again.wait(3.0, heard=RING)

    assert again.heard("a", Opened) == []
    assert again.heard("b", Opened) == again.heard("c", Opened) == [OPENED]
    assert again.heard("a", Proposal) == []


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.ABORTED])
def test_who_was_lost_by_a_verdict_that_others_have_heard_is_out(
    again: Again, outcome: Outcome
) -> None:
    lost = replace(COMMITTED, outcome=outcome, culprits=(PeerId("c"),), detail="c, the root")
    again.back("a", lost, report=replace(REPORT, last_number=11))
    again.back("b", BEGAN)
    again.back("c", BEGAN)  # it never heard that it was evicted
    again.wait(3.0, heard=RING)

    assert "it was out before" in again.heard("c", Evicted)[0].reason
    assert again.heard("b", Verdict)[0] == lost
    assert again.heard("a", Proposal)[0].ring_order == RING[:2]


def test_who_is_not_in_the_ring_that_was_proposed_to_the_others_is_out(again: Again) -> None:
    proposed = Ring(Generation(5), RING[:2])
    again.back("a", report=replace(REPORT, proposal=proposed))
    again.back("b")
    again.back("c")  # it never heard that it was evicted
    again.wait(3.0, heard=RING)

    assert "went on without it" in again.heard("c", Evicted)[0].reason
    assert again.heard("a", Proposal)[0].ring_order == RING[:2]


def test_a_former_member_that_the_others_went_on_without_is_out(again: Again) -> None:
    survivors = replace(OPENED, generation=Generation(5), ring_order=RING[:2], admission=False)
    for name in RING[:2]:
        again.back(name, report=replace(REPORT, opened=survivors))
    again.back("c")
    again.wait(3.0, heard=RING)

    assert "went on without it" in again.heard("c", Evicted)[0].reason
    assert again.ring() == RING[:2]
    assert again.heard("a", Proposal) == []


def test_the_result_of_an_admit_that_one_has_heard_stands(again: Again) -> None:
    result = VoteResult(
        index=0,
        outcome=VoteOutcome.UNCHANGED,
        generation=Generation(4),
        ring_order=RING,
        counts=COUNTS,
        number=11,
    )
    again.back("a", result, report=replace(REPORT, admit_index=1, last_number=11))
    for name in RING[1:]:
        again.back(name)
        again.vote(name, generation=4, calls_made=1)
    again.wait(3.0, heard=RING)

    assert again.heard("a", VoteResult) == []
    assert again.heard("b", VoteResult) == again.heard("c", VoteResult) == [result]
    assert again.coordinator.run.admit_index == 1


def test_who_has_missed_the_end_of_an_admit_that_nobody_keeps_is_out(again: Again) -> None:
    for name in RING[:2]:
        again.back(name, report=replace(REPORT, admit_index=1, last_number=11))
    again.back("c")  # it was out, and the journal has lost that
    again.wait(3.0, heard=RING)

    assert "ended an `admit` without it" in again.heard("c", Evicted)[0].reason
    assert again.ring() == RING[:2]


def test_an_admit_is_asked_for_again(again: Again) -> None:
    for name in RING:
        again.back(name)
        again.vote(name, generation=4, calls_made=1)
    again.wait(3.0, heard=RING)

    results = [again.heard(name, VoteResult) for name in RING]
    assert [result.outcome for (result,) in results] == [VoteOutcome.UNCHANGED] * 3


def test_a_sync_of_which_nobody_knows_what_was_elected_runs_again(again: Again) -> None:
    state = StateReport(revision=1, digest=b"d" * 16, strategy=Strategy.POPULAR)
    signature = Signature(kind=CollectiveKind.SYNC_STATE, layout="x")
    began = replace(BEGAN, signature=signature, state=state)
    for name in RING:
        again.back(name, began, FINISHED)
    again.wait(3.0, heard=RING)

    assert [again.verdicts(name) for name in RING] == [[Outcome.ABORTED]] * 3
    assert again.heard("a", Proposal)[0].generation == 105


def test_the_last_committed_state_is_known_from_the_members(again: Again) -> None:
    for name, revision in zip(RING, (7, 8, 8), strict=True):
        again.back(name, report=replace(REPORT, committed=Content(revision, b"d" * 16)))
    again.wait(3.0, heard=RING)

    assert again.coordinator.run.groups[0].state == (8, b"d" * 16)


def test_who_tells_two_reports_is_out(again: Again) -> None:
    for name in RING:
        again.back(name)
    again.say("c", REPORT)
    again.wait(10.0, heard=("a", "b"))

    assert again.heard("a", Proposal)[0].ring_order == RING[:2]


def test_who_tells_more_than_fits_is_out_and_the_others_go_on(
    again: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "TOLD_BYTES_MAX", 100_000)
    signature = Signature(kind=CollectiveKind.SYNC_STATE, layout="x")
    state = StateReport(
        revision=1, digest=b"d" * 16, strategy=Strategy.POPULAR, manifest=b"m" * 30_000
    )
    again.come("c")
    for _ in range(4):
        again.say("c", replace(BEGAN, signature=signature, state=state))
    for name in RING[:2]:
        again.back(name, BEGAN, FINISHED)
    again.wait(3.0, heard=RING)

    assert "c" not in again.ring()
    assert again.verdicts("a") == again.verdicts("b") == [Outcome.COMMITTED]


def test_long_verdicts_count_by_their_names(again: Again, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "TOLD_BYTES_MAX", 100_000)
    crowd = tuple(PeerId(f"p{number}") for number in range(1000))
    again.come("c")
    again.say("c", replace(COMMITTED, ring_order=crowd))

    assert "tells too much" in missing(again)["c"]


def test_a_crowd_that_claims_to_be_of_the_run_is_no_larger_than_a_run(
    again: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "RUN_PEERS_MAX", 5)
    for number in range(9):
        again.come(f"x{number}")

    assert len(again.coordinator.run.peers) == 5
    assert again.heard("x4", Resumed) == [Resumed(reset=True)]
    assert [refused.unknown_session for refused in again.heard("x5", Refused)] == [True]


def test_a_report_names_no_more_members_than_a_run_has(
    again: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "RUN_PEERS_MAX", 5)
    crowd = tuple(PeerId(name) for name in "abcdef")
    again.back("a", report=replace(REPORT, opened=replace(OPENED, ring_order=crowd)))

    assert set(again.coordinator.run.peers) == {"a"}
    assert "more members than a run has" in missing(again)["a"]
