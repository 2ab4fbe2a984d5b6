"""Steps of a coordinator that was started again: in which order a member is told what it missed."""

from dataclasses import replace

from ringhaul.ids import Generation
from ringhaul.testing.restart_script import COMMITTED, OPENED, REPORT, RING, Again
from ringhaul.wire.coordinator_messages import Outcome, Ring, Verdict
from ringhaul.wire.message import Message


def test_what_was_decided_before_an_opening_is_told_before_it() -> None:
    again = Again()
    before = replace(OPENED, generation=Generation(3), opened_after=4)
    repaired = replace(OPENED, admission=False, opened_after=11)
    unfit = replace(COMMITTED, generation=Generation(3), outcome=Outcome.UNFIT)
    here = replace(REPORT, opened=repaired, admitted_generation=Generation(3), last_number=11)
    proposed = Ring(Generation(4), RING)
    # it was ready for the opening, and has heard neither of it nor of the verdict before it
    late = replace(here, opened=before, proposal=proposed, last_number=10, needs_opening=True)
    again.back("a", unfit, report=here)
    again.back("b", report=here)
    again.back("c", report=late)
    again.wait(3.0, heard=RING)

    told = [message for message in again.heard("c", Message) if message in (unfit, repaired)]
    assert told == [unfit, repaired]
    assert again.heard("a", Verdict) == []
