from dataclasses import replace

import pytest

from ringhaul.core.steps import Close, LinkLost
from ringhaul.ids import Generation, OnLoss, OpKey
from ringhaul.testing.coordinator_script import SUM, Script
from ringhaul.wire.coordinator_messages import (
    GiveUp,
    Opened,
    Outcome,
    Proposal,
    StillWaiting,
    Verdict,
    VoteOutcome,
    VoteResult,
)
from ringhaul.wire.records import CollectiveKind, Signature
from ringhaul.wire.session_messages import Evicted, Goodbye, Heartbeat, Leave, Refused, Resumed

RAISING = replace(SUM, on_loss=OnLoss.RAISE)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def trio_of(script: Script) -> Script:
    script.found("a", "b", "c")
    return script


def outcomes(script: Script, name: str) -> list[Outcome]:
    return [verdict.outcome for verdict in script.heard(name, Verdict)]


def votes(script: Script, name: str) -> list[VoteOutcome]:
    return [result.outcome for result in script.heard(name, VoteResult)]


def test_differing_signatures_are_a_mismatch_that_names_both(script: Script) -> None:
    script.found("a", "b")
    script.begin("a")
    script.begin("b", signature=replace(SUM, element_count=5))

    verdict = script.heard("b", Verdict)[0]
    assert verdict.outcome is Outcome.MISMATCH
    assert verdict.culprits == (script.ids["a"], script.ids["b"])


def test_a_collective_commits_when_all_members_have_finished(script: Script) -> None:
    script.found("a", "b")
    for name in "ab":
        script.begin(name)
    script.finish("a")
    assert outcomes(script, "a") == []

    script.finish("b")

    assert outcomes(script, "a") == outcomes(script, "b") == [Outcome.COMMITTED]


def test_a_verdict_carries_the_number_of_pending_peers(script: Script) -> None:
    script.found("a", "b")
    script.connect("c")
    for name in "ab":
        script.begin(name)
        script.finish(name)

    assert script.heard("a", Verdict)[0].counts.pending_peers == 1


def test_results_that_differ_are_committed_by_nobody(script: Script) -> None:
    script.found("a", "b")
    for name in "ab":
        script.begin(name)
        script.finish(name, digest=name.encode() * 16)

    assert outcomes(script, "a") == outcomes(script, "b") == [Outcome.DIVERGED]


def test_a_loss_commits_what_all_survivors_have_finished(trio_of: Script) -> None:
    for name in "abc":
        trio_of.begin(name)
    trio_of.finish("a")
    trio_of.finish("b")
    trio_of.kill("c", witness="b")

    assert outcomes(trio_of, "a") == [Outcome.COMMITTED]
    assert trio_of.ids["c"] in trio_of.heard("a", Verdict)[0].ring_order


def test_a_loss_aborts_what_one_survivor_has_not_finished(trio_of: Script) -> None:
    for name in "abc":
        trio_of.begin(name)
    trio_of.finish("a")
    trio_of.kill("c", witness="b")

    assert outcomes(trio_of, "a") == outcomes(trio_of, "b") == [Outcome.ABORTED]


def test_an_aborted_operation_commits_in_the_next_generation(trio_of: Script) -> None:
    for name in "abc":
        trio_of.begin(name)
    trio_of.kill("c", witness="b")
    trio_of.ready("a", "b")
    for name in "ab":
        trio_of.begin(name, generation=2)
        trio_of.finish(name, generation=2)

    assert outcomes(trio_of, "a") == [Outcome.ABORTED, Outcome.COMMITTED]


def test_a_loss_with_on_loss_raise_closes_the_key_for_who_comes_later(trio_of: Script) -> None:
    trio_of.begin("a", signature=RAISING)
    trio_of.kill("c", witness="b")
    assert outcomes(trio_of, "b") == [Outcome.LOST]

    trio_of.ready("a", "b")
    trio_of.begin("b", generation=2, signature=RAISING)

    assert trio_of.coordinator.run.groups[0].open == {}


def test_a_closed_connection_alone_loses_nobody(trio_of: Script) -> None:
    trio_of.lose_link("c")

    assert len(trio_of.ring()) == 3


def test_a_refused_redial_alone_loses_nobody(trio_of: Script) -> None:
    trio_of.report("b", "c", refused=True)

    assert len(trio_of.ring()) == 3


def test_two_witnesses_lose_a_peer_without_a_timer(trio_of: Script) -> None:
    trio_of.report("b", "c", refused=True)
    trio_of.lose_link("c")

    assert trio_of.ids["c"] not in trio_of.ring()


def test_a_reset_and_a_closed_connection_are_not_two_witnesses(trio_of: Script) -> None:
    trio_of.report("b", "c", refused=False)
    trio_of.lose_link("c")

    assert trio_of.ids["c"] in trio_of.ring()


def test_a_refusal_after_a_reset_is_a_second_witness(trio_of: Script) -> None:
    trio_of.report("b", "c", refused=False)
    trio_of.lose_link("c")
    trio_of.report("b", "c", refused=True)

    assert trio_of.ids["c"] not in trio_of.ring()


def test_an_answered_ping_settles_the_doubt_and_the_ring_is_opened_again(
    trio_of: Script,
) -> None:
    trio_of.report("b", "c", refused=True)
    ping = trio_of.heard("c", Heartbeat)[-1].ping
    trio_of.say("c", Heartbeat(pong=ping), seq=0)

    assert trio_of.heard("c", Proposal)[-1].generation == 2
    assert len(trio_of.heard("c", Proposal)[-1].ring_order) == 3


def test_a_doubt_about_a_link_that_was_ready_holds_the_opening(script: Script) -> None:
    for name in "ab":
        script.connect(name, min_world_size=2)
    script.ready("a")
    script.report("b", "a", refused=False)
    script.ready("b")

    assert script.heard("a", Opened) == []


def test_a_link_that_never_was_leads_to_another_ring(script: Script) -> None:
    for name in "abc":
        script.connect(name, min_world_size=3)
    script.fail_dials("a", "b")

    ids = script.ids
    assert script.heard("a", Proposal)[-1].ring_order == (ids["a"], ids["c"], ids["b"])


def test_a_peer_that_no_ring_can_include_is_evicted(script: Script) -> None:
    script.connect("a", min_world_size=2)
    script.connect("b", min_world_size=2)
    script.fail_dials("a", "b")

    assert "no ring can include it" in script.heard("b", Evicted)[0].reason


def break_link(script: Script, reporter: str, accused: str) -> None:
    """A link between two that live is reset, and is up again in the next generation."""
    generation = script.opened(reporter).generation
    script.report(reporter, accused, refused=False, generation=generation)
    script.say(accused, Heartbeat(pong=script.heard(accused, Heartbeat)[-1].ping), seq=0)


def test_a_pair_whose_link_breaks_again_and_again_is_unusable(script: Script) -> None:
    script.found("a", "b")
    for _ in range(2):
        break_link(script, "a", "b")
        script.ready("a", "b")

    break_link(script, "a", "b")

    assert "no ring can include it" in script.heard("b", Evicted)[0].reason


def test_breaks_are_forgotten_once_an_operation_is_committed(script: Script) -> None:
    script.found("a", "b")
    for ordinal in range(5):
        break_link(script, "a", "b")
        script.ready("a", "b")
        for name in "ab":
            script.begin(name, ordinal, generation=ordinal + 2)
        for name in "ab":
            script.finish(name, ordinal, generation=ordinal + 2)

    assert script.heard("b", Evicted) == []
    assert outcomes(script, "b") == [Outcome.COMMITTED] * 5


def test_a_barrier_proves_no_link(script: Script) -> None:
    script.found("a", "b")
    barrier = Signature(kind=CollectiveKind.BARRIER)
    for ordinal in range(2):
        break_link(script, "a", "b")
        script.ready("a", "b")
        for name in "ab":
            script.begin(name, ordinal, generation=ordinal + 2, signature=barrier)
        for name in "ab":
            script.finish(name, ordinal, generation=ordinal + 2)

    break_link(script, "a", "b")

    assert len(script.heard("b", Evicted)) == 1


def test_a_timeout_fails_the_operation_for_all_and_names_who_is_missing(script: Script) -> None:
    script.found("a", "b")
    script.begin("a")
    give_up = GiveUp(
        generation=Generation(1), key=OpKey(None, 0), outcome=Outcome.TIMEOUT, detail="1 s"
    )
    script.say("a", give_up)

    assert outcomes(script, "b") == [Outcome.TIMEOUT]
    assert script.heard("b", Verdict)[0].culprits == (script.ids["b"],)


def test_giving_up_after_the_commit_is_ignored(script: Script) -> None:
    script.found("a", "b")
    for name in "ab":
        script.begin(name)
        script.finish(name)
    give_up = GiveUp(
        generation=Generation(1), key=OpKey(None, 0), outcome=Outcome.TIMEOUT, detail="1 s"
    )
    script.say("a", give_up)

    assert outcomes(script, "a") == [Outcome.COMMITTED]


def test_what_names_an_older_generation_is_ignored(trio_of: Script) -> None:
    trio_of.kill("c", witness="b")
    trio_of.ready("a", "b")
    trio_of.begin("a", generation=1)
    trio_of.finish("a", generation=1)

    assert trio_of.coordinator.run.groups[0].open == {}
    assert len(trio_of.ring()) == 2


def test_a_report_about_a_link_of_an_older_ring_is_ignored(trio_of: Script) -> None:
    trio_of.kill("c", witness="b")
    trio_of.ready("a", "b")
    trio_of.report("a", "b", refused=False, generation=1)

    assert trio_of.coordinator.run.groups[0].doubts == []
    assert trio_of.coordinator.run.groups[0].wanted is None


def test_what_names_a_future_generation_costs_the_sender_its_place(trio_of: Script) -> None:
    trio_of.begin("c", generation=9)

    assert "generation 9" in trio_of.heard("c", Evicted)[0].reason
    assert trio_of.ids["c"] not in trio_of.ring()


def test_a_pending_peer_may_not_begin_a_collective(trio_of: Script) -> None:
    trio_of.connect("d")
    trio_of.begin("d")

    assert "no member" in trio_of.heard("d", Evicted)[0].reason
    assert trio_of.coordinator.run.groups[0].open == {}


def test_resume_sends_again_what_was_not_acknowledged(trio_of: Script) -> None:
    trio_of.lose_link("c")
    for name in "ab":
        trio_of.begin(name)
    trio_of.resume("c")

    assert len(trio_of.heard("c", Resumed)) == 1
    assert [opened.generation for opened in trio_of.heard("c", Opened)] == [1]


def test_resume_fences_the_older_connection(trio_of: Script) -> None:
    older = trio_of.links["c"]
    trio_of.resume("c")

    closed = [e.link for e in trio_of.coordinator.run.effects if isinstance(e, Close)]
    assert closed == [older]
    trio_of.step(LinkLost(older, "closed"))
    assert trio_of.coordinator.run.peers[trio_of.ids["c"]].link == trio_of.links["c"]


def test_an_unknown_session_is_refused(trio_of: Script) -> None:
    trio_of.secrets["c"] = b"x" * 16
    trio_of.resume("c")

    assert trio_of.heard("c", Refused)[0].unknown_session
    assert len(trio_of.ring()) == 3


def test_a_session_ends_after_its_grace(trio_of: Script) -> None:
    trio_of.lose_link("c")
    trio_of.wait(9.9, heard=("a", "b"))
    assert len(trio_of.ring()) == 3

    trio_of.wait(0.2, heard=("a", "b"))

    assert len(trio_of.ring()) == 2


def test_a_silent_member_that_is_awaited_is_lost_after_5_s(trio_of: Script) -> None:
    trio_of.begin("a")
    trio_of.wait(4.9, heard=("a", "b"))
    assert len(trio_of.ring()) == 3

    trio_of.wait(0.2, heard=("a", "b"))

    assert trio_of.ids["c"] not in trio_of.ring()


def test_a_silent_member_that_nobody_awaits_is_lost_after_30_s(trio_of: Script) -> None:
    trio_of.wait(29.9, heard=("a", "b"))
    assert len(trio_of.ring()) == 3

    trio_of.wait(0.2, heard=("a", "b"))

    assert trio_of.ids["c"] not in trio_of.ring()


def test_members_that_fall_silent_together_get_the_grace(trio_of: Script) -> None:
    trio_of.begin("a")
    trio_of.wait(9.9)
    assert len(trio_of.ring()) == 3

    trio_of.wait(0.2)

    assert trio_of.ring() == ()


def test_time_in_which_the_coordinator_did_not_run_evicts_nobody(trio_of: Script) -> None:
    trio_of.begin("a")
    trio_of.now += 100.0
    trio_of.wait(4.9)

    assert len(trio_of.ring()) == 3


def test_a_peer_that_leaves_is_told_goodbye_and_its_ring_is_repaired(trio_of: Script) -> None:
    trio_of.say("c", Leave())

    assert len(trio_of.heard("c", Goodbye)) == 1
    assert trio_of.heard("a", Proposal)[-1].generation == 2


def test_a_long_wait_is_reported_with_who_is_missing(script: Script) -> None:
    script.found("a", "b")
    script.begin("a")
    script.wait(30.1, heard=("a", "b"))

    assert script.heard("a", StillWaiting)[0].missing == (script.ids["b"],)
