from dataclasses import replace

import pytest

from ringhaul.core.coordinator.machine import Coordinator
from ringhaul.core.steps import LinkLost, Received
from ringhaul.ids import Generation, LinkId, OnLoss
from ringhaul.testing.coordinator_script import SUM, Script
from ringhaul.wire.codec import Envelope
from ringhaul.wire.coordinator_messages import (
    GiveUpVote,
    Opened,
    Outcome,
    Proposal,
    Verdict,
    VoteOutcome,
    VoteResult,
)
from ringhaul.wire.session_messages import Leave, Refused

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


def test_the_first_peer_founds_the_run_alone(script: Script) -> None:
    script.connect("a")
    script.ready("a")

    assert script.opened("a").ring_order == (script.ids["a"],)
    assert script.opened("a").admission


def test_founding_waits_for_min_world_size(script: Script) -> None:
    script.connect("a", min_world_size=2)
    assert script.heard("a", Proposal) == []

    script.connect("b", min_world_size=2)

    assert len(script.heard("a", Proposal)[0].ring_order) == 2


def test_a_generation_opens_when_all_links_are_ready(script: Script) -> None:
    script.connect("a", min_world_size=2)
    script.connect("b", min_world_size=2)
    script.ready("a")
    assert script.heard("a", Opened) == []

    script.ready("b")

    assert script.opened("a") == script.opened("b")


def test_admission_waits_for_the_votes_of_all_members(trio_of: Script) -> None:
    trio_of.connect("d")
    trio_of.vote("a")
    trio_of.vote("b")
    assert trio_of.heard("d", Proposal) == []

    trio_of.vote("c")

    assert trio_of.heard("d", Proposal)[0].generation == 2


def test_admission_waits_for_the_votes_of_all_groups(script: Script) -> None:
    script.connect("a", group=0)
    script.ready("a")
    script.connect("b", group=1)
    script.vote("a")
    script.ready("a", "b")
    script.connect("c", group=0)
    script.vote("a", generation=2)
    assert script.heard("c", Proposal) == []

    script.vote("b")

    assert len(script.heard("c", Proposal)) == 1


def test_admit_without_pending_peers_changes_nothing(script: Script) -> None:
    script.found("a", "b")
    script.vote("a")
    script.vote("b")

    assert votes(script, "a") == votes(script, "b") == [VoteOutcome.UNCHANGED]


def test_admit_waits_for_open_operations(script: Script) -> None:
    script.found("a", "b")
    script.connect("c")
    script.begin("a")
    script.begin("b")
    script.vote("a", calls_made=1)
    script.vote("b", calls_made=1)
    assert script.heard("c", Proposal) == []

    script.finish("a")
    script.finish("b")

    assert len(script.heard("c", Proposal)) == 1


def test_votes_after_a_repair_count_once_earlier_operations_have_begun_again(
    trio_of: Script,
) -> None:
    trio_of.connect("d")
    for name in "abc":
        trio_of.begin(name)
        trio_of.vote(name, calls_made=1)
    trio_of.kill("c", witness="b")
    trio_of.ready("a", "b")
    assert trio_of.heard("d", Proposal) == []  # operation 0 has no verdict yet

    for name in "ab":
        trio_of.begin(name, generation=2)
        trio_of.vote(name, generation=2, calls_made=1)
    for name in "ab":
        trio_of.finish(name, generation=2)

    assert trio_of.heard("a", Verdict)[-1].outcome is Outcome.COMMITTED
    assert len(trio_of.heard("d", Proposal)) == 1


def test_a_loss_during_an_admission_does_not_cost_the_votes(trio_of: Script) -> None:
    trio_of.connect("d")
    for name in "abc":
        trio_of.vote(name)
    trio_of.kill("c", witness="b", generation=2)
    trio_of.ready("a", "b", "d")

    assert trio_of.opened("d").admission
    assert trio_of.ids["c"] not in trio_of.opened("d").ring_order


def test_a_fresh_vote_is_skipped_when_a_member_begins_something_else(script: Script) -> None:
    script.found("a", "b")
    script.vote("a", fresh=True)
    script.begin("b")

    assert votes(script, "a") == [VoteOutcome.SKIPPED]


def test_a_fresh_vote_that_comes_late_is_skipped_at_once(script: Script) -> None:
    script.found("a", "b")
    script.begin("b")
    script.vote("a", fresh=True)

    assert votes(script, "a") == [VoteOutcome.SKIPPED]


def test_a_fresh_vote_from_before_a_repair_is_no_mismatch(trio_of: Script) -> None:
    trio_of.vote("a", fresh=True)
    trio_of.kill("c", witness="b")
    trio_of.ready("a", "b")
    trio_of.begin("b", generation=2)
    assert votes(trio_of, "a") == []

    trio_of.vote("a", generation=2, fresh=True)

    assert votes(trio_of, "a") == [VoteOutcome.SKIPPED]
    assert outcomes(trio_of, "b") == []


def test_a_call_that_crossed_a_proposal_skips_no_fresh_vote(trio_of: Script) -> None:
    trio_of.vote("a", fresh=True)
    trio_of.kill("c", witness="b")
    trio_of.begin("b")  # of the generation that is closing: it begins again in the next one

    assert votes(trio_of, "a") == []


def test_a_timeout_of_others_counts_for_a_newcomer_when_it_comes_to_that_admit(
    script: Script,
) -> None:
    """Its first `admit` is its own: the member that it came to is at work, and comes later."""
    script.found("a")
    script.connect("b")
    script.connect("x", group=1)
    script.vote("a")
    script.ready("a", "b", "x")
    script.vote("b", generation=2, fresh=True)
    script.vote("x", calls_made=2)
    timeout = GiveUpVote(
        generation=Generation(1), index=0, outcome=VoteOutcome.TIMEOUT, detail="late"
    )
    script.say("x", timeout)

    assert votes(script, "b") == [VoteOutcome.SKIPPED, VoteOutcome.TIMEOUT]
    assert votes(script, "x") == votes(script, "a") == [VoteOutcome.TIMEOUT]


def test_a_fresh_vote_during_a_repair_is_answered_in_the_next_generation(trio_of: Script) -> None:
    trio_of.begin("b")
    trio_of.kill("c", witness="b")
    trio_of.vote("a", fresh=True)  # its answer would name the old generation and the new ring
    assert votes(trio_of, "a") == []
    trio_of.ready("a", "b")

    trio_of.vote("a", generation=2, fresh=True)

    assert votes(trio_of, "a") == [VoteOutcome.SKIPPED]
    assert trio_of.heard("a", VoteResult)[-1].generation == 2
    assert trio_of.heard("a", VoteResult)[-1].ring_order == trio_of.opened("a").ring_order


def test_giving_up_a_fresh_vote_ends_it_for_the_newcomer_alone(script: Script) -> None:
    script.found("a", "b")
    script.vote("a", fresh=True)
    give_up = GiveUpVote(
        generation=Generation(1), index=0, outcome=VoteOutcome.TIMEOUT, detail="late"
    )
    script.say("a", give_up)

    assert votes(script, "a") == [VoteOutcome.SKIPPED]
    assert votes(script, "b") == []


def test_giving_up_a_vote_that_was_skipped_meanwhile_concerns_nobody(script: Script) -> None:
    script.found("a", "b")
    script.vote("a", fresh=True)
    script.begin("b")
    give_up = GiveUpVote(
        generation=Generation(1), index=0, outcome=VoteOutcome.TIMEOUT, detail="late"
    )
    script.say("a", give_up)

    assert votes(script, "a") == [VoteOutcome.SKIPPED]
    assert votes(script, "b") == []


def test_giving_up_a_vote_ends_it_for_all_and_names_who_is_missing(script: Script) -> None:
    script.found("a", "b")
    script.vote("a")
    give_up = GiveUpVote(
        generation=Generation(1), index=0, outcome=VoteOutcome.TIMEOUT, detail="late"
    )
    script.say("a", give_up)

    assert votes(script, "a") == votes(script, "b") == [VoteOutcome.TIMEOUT]
    assert script.heard("b", VoteResult)[0].culprits == (script.ids["b"],)


def test_admit_against_a_collective_is_a_mismatch_that_names_both(script: Script) -> None:
    script.found("a", "b")
    script.vote("a")
    script.begin("b")

    verdict = script.heard("a", Verdict)[0]
    assert verdict.outcome is Outcome.MISMATCH
    assert set(verdict.culprits) == {script.ids["a"], script.ids["b"]}
    assert votes(script, "b") == [VoteOutcome.MISMATCH]


def test_admit_after_differing_numbers_of_calls_is_a_mismatch(script: Script) -> None:
    script.found("a", "b")
    script.vote("a", calls_made=1)
    script.vote("b", calls_made=2)

    assert votes(script, "a") == votes(script, "b") == [VoteOutcome.MISMATCH]


def test_hello_is_expected_first(script: Script) -> None:
    link = script.accept()
    script.step(Received(link, Envelope(message=Leave())))

    assert isinstance(script.sent[-1][1], Refused)


def test_an_unknown_link_is_ignored(script: Script) -> None:
    coordinator: Coordinator = script.coordinator

    assert coordinator.step(LinkLost(LinkId(99), "late"), 0.0) == []


def test_a_peer_that_asks_for_a_larger_world_holds_up_nobody_else(trio_of: Script) -> None:
    trio_of.connect("greedy", min_world_size=1000)
    trio_of.connect("d")
    for name in ("a", "b", "c"):
        trio_of.vote(name)
    trio_of.ready("a", "b", "c", "d")

    assert len(trio_of.ring()) == 4
    assert trio_of.heard("greedy", Proposal) == []


def test_a_peer_that_asks_for_a_larger_world_does_not_keep_others_from_founding() -> None:
    script = Script()
    script.connect("greedy", min_world_size=1000)
    script.found("a", "b")

    assert len(script.ring()) == 2
    assert script.heard("greedy", Proposal) == []
