"""Silence is judged by how regularly a peer was heard, within what the operator allows."""

import pytest

from ringhaul.core.coordinator.patience import Arrivals
from ringhaul.testing.coordinator_script import Script
from ringhaul.wire.session_messages import Heartbeat

LEAST_S, MOST_S = 5.0, 30.0


def patience_after(gaps_s: list[float]) -> float:
    arrivals = Arrivals()
    for gap_s in gaps_s:
        arrivals.note(gap_s, 1.0)
    return arrivals.patience_s(LEAST_S, MOST_S)


def test_nothing_is_known_of_a_new_peer() -> None:
    assert patience_after([]) == LEAST_S


def test_a_regular_peer_gets_the_least() -> None:
    assert patience_after([1.0, 1.1, 0.9] * 50) == LEAST_S


def test_an_irregular_peer_gets_more() -> None:
    assert LEAST_S < patience_after([1.0, 3.0] * 50) < MOST_S


def test_nobody_gets_more_than_the_most() -> None:
    assert patience_after([0.6, 25.0] * 50) == MOST_S


def test_patience_shrinks_again_when_a_peer_becomes_regular() -> None:
    assert patience_after([1.0, 4.0] * 50 + [1.0] * 50) == LEAST_S


def test_messages_between_two_heartbeats_do_not_hide_the_gaps() -> None:
    assert patience_after([0.001, 3.0, 0.001, 1.0] * 50) == patience_after([3.0, 1.0] * 50)


@pytest.mark.parametrize(("gaps_s", "is_out"), [([1.0], True), ([1.0, 4.0], False)])
def test_an_awaited_member_is_lost_by_its_own_measure(gaps_s: list[float], is_out: bool) -> None:
    script = Script()
    script.found("a", "b")
    for _ in range(20):
        for gap_s in gaps_s:
            script.wait(gap_s, heard=("a",))
            script.say("b", Heartbeat(), seq=0)
    script.begin("a")  # b is awaited from now on

    script.wait(8.0, heard=("a",))

    assert (script.ids["b"] not in script.coordinator.run.peers) == is_out
