"""Steps of a coordinator that was started again: an admission is one of all groups, or of none."""

from dataclasses import replace

import pytest

from ringhaul.ids import Generation, PeerId
from ringhaul.testing.restart_script import (
    BEGAN,
    COMMITTED,
    OPENED,
    REPORT,
    RING,
    Again,
)
from ringhaul.wire.coordinator_messages import (
    LinkFailed,
    Opened,
    Ring,
    Verdict,
)
from ringhaul.wire.session_messages import Evicted


@pytest.fixture
def again() -> Again:
    """Without a journal."""
    return Again()


def test_an_admission_that_one_group_has_heard_of_is_completed_in_the_other(again: Again) -> None:
    there = tuple(PeerId(name) for name in ("x", "y"))
    mine = replace(REPORT, opened=replace(OPENED, ring_order=RING[:2]))
    other = replace(
        REPORT,
        opened=replace(OPENED, generation=Generation(6), ring_order=there[:1], admissions=1),
        proposal=Ring(Generation(8), there),
        last_number=10,
        needs_opening=True,
    )
    for name in RING[:2]:
        again.back(name, report=mine)
    again.come("x", group=1)
    again.say("x", other)
    again.come("y", group=1)
    again.say("y", replace(other, opened=None, last_number=0))
    again.wait(3.0, heard=("a", "b", "x", "y"))

    (opened,) = again.heard("x", Opened)
    assert again.heard("y", Opened) == [opened]
    assert (opened.generation, opened.ring_order, opened.admission) == (8, there, True)
    assert (opened.joined, opened.counts) == (there[1:], OPENED.counts)


def test_a_group_that_took_no_part_in_an_admission_is_not_opened_by_it(again: Again) -> None:
    """What was proposed to it was withdrawn: its other peer died before."""
    admitted = replace(OPENED, ring_order=RING[:2], admitted=OPENED.admitted[:1])
    for name in RING[:2]:
        again.back(name, report=replace(REPORT, opened=admitted))
    proposal = Ring(Generation(3), (PeerId("x"), PeerId("y")))
    again.come("x", group=1)
    again.say(
        "x",
        LinkFailed(generation=Generation(3), neighbour=PeerId("y"), refused=True, reason="gone"),
    )
    again.say("x", replace(REPORT, opened=None, proposal=proposal, last_number=0))
    again.wait(3.0, heard=("a", "b", "x"))

    assert again.heard("x", Opened) == []
    assert again.heard("x", Evicted) == []
    assert again.ring() == RING[:2]


def test_a_group_that_knows_nothing_of_the_last_admission_was_out_by_then(again: Again) -> None:
    for name in RING[:2]:
        again.back(name, report=replace(REPORT, opened=replace(OPENED, ring_order=RING[:2])))
    before = replace(OPENED, ring_order=(PeerId("x"),), admissions=OPENED.admissions - 1)
    again.come("x", group=1)
    again.say("x", replace(REPORT, opened=before))
    again.wait(3.0, heard=("a", "b", "x"))

    assert "went on without it" in again.heard("x", Evicted)[0].reason
    assert again.ring() == RING[:2]


def test_what_was_decided_before_others_founded_the_run_anew_concerns_nobody(
    again: Again,
) -> None:
    """A coordinator without a journal: the member of the first run came back too late."""
    first = replace(
        OPENED, generation=Generation(1), ring_order=RING[2:], admissions=1, opened_after=0
    )
    verdict = replace(COMMITTED, generation=Generation(1), ring_order=RING[2:], number=1)
    again.back("c", verdict, report=replace(REPORT, opened=first, last_number=1))
    anew = replace(OPENED, ring_order=RING[:2], opened_after=0)
    for name in RING[:2]:
        again.back(name, BEGAN, report=replace(REPORT, opened=anew, last_number=0))
    again.wait(3.0, heard=RING)

    assert again.heard("a", Verdict) == again.heard("b", Verdict) == []
    assert "went on without it" in again.heard("c", Evicted)[0].reason
    assert again.ring() == RING[:2]


def test_a_later_start_numbers_its_admissions_above_all_of_an_earlier_one(again: Again) -> None:
    """It may know nothing of them."""
    earlier = again.coordinator.run.next_admission()
    again.coordinator.run.incarnation += 1
    again.coordinator.run.admissions = 0

    assert again.coordinator.run.next_admission() > earlier + 1000


def test_a_proposal_of_a_later_admission_than_others_have_heard_of_is_not_opened(
    again: Again,
) -> None:
    for name in RING[:2]:
        again.back(name, report=replace(REPORT, opened=replace(OPENED, ring_order=RING[:2])))
    again.come("x", group=1)
    proposal = Ring(Generation(1), (PeerId("x"), PeerId("y")))
    again.say("x", replace(REPORT, opened=None, proposal=proposal, last_number=0))
    again.wait(3.0, heard=("a", "b", "x"))

    assert again.heard("x", Opened) == []


def test_a_group_of_which_nobody_came_back_is_numbered_on(again: Again) -> None:
    for name in RING:
        again.back(name)
    again.wait(3.0, heard=RING)

    known = next(opening for opening in OPENED.admitted if opening.group == 1)
    assert again.coordinator.run.groups[1].proposed_generation > known.generation
