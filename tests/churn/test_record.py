"""Recoveries are measured to the slowest survivor, and only where somebody survived."""

import dataclasses

import pytest

from ringhaul.cli.churn.facts import Called
from ringhaul.cli.churn.faults import Deed
from ringhaul.cli.churn.record import Record, Spread, spread_of


def returned(number: int, at: float, ring: tuple[int, ...]) -> Called:
    return Called(
        peer=f"c{number}",
        at=at,
        began_at=at - 0.1,
        round=0,
        index=0,
        kind="barrier",
        generation=1,
        contributors=[f"c{n}-abc" for n in ring],
        root=None,
        attempts=1,
        aborts=0,
        digest="",
        wrong=None,
        error=0.0,
    )


def test_recovery_ends_with_the_slowest_survivors_call_without_the_victim() -> None:
    record = Record()
    record.on_deed(Deed(10.0, "kill", "c3"), ["c1", "c2", "c3"])
    record.on_return(returned(1, 10.1, (1, 2, 3)))  # it had contributed
    record.on_return(returned(1, 10.2, (1, 2)))
    assert record.kill_s == []

    record.on_return(returned(2, 10.5, (1, 2)))

    assert record.kill_s == pytest.approx([0.5])
    assert record.calm_kill_s == pytest.approx([0.5])


def test_another_fault_in_between_is_told_apart() -> None:
    record = Record()
    record.on_deed(Deed(10.0, "kill", "c3"), ["c1", "c2", "c3"])
    record.on_deed(Deed(10.1, "stop", "c2", "until the others do without it"), ["c1", "c2"])

    record.on_return(returned(1, 15.2, (1,)))

    assert record.kill_s == pytest.approx([5.2])
    assert record.stop_s == pytest.approx([5.1])
    assert record.calm_kill_s == []


def test_a_survivor_that_is_killed_too_is_not_waited_for() -> None:
    record = Record()
    record.on_deed(Deed(10.0, "kill", "c3"), ["c1", "c2"])
    record.on_return(returned(1, 10.2, (1, 2)))

    record.on_gone("c2")

    assert record.kill_s == pytest.approx([0.2])


def test_a_loss_that_nobody_survives_has_no_recovery() -> None:
    record = Record()
    record.on_deed(Deed(10.0, "kill", "c3"), ["c3"])

    assert record.kill_s == []


def test_calls_and_retries_are_counted() -> None:
    record = Record()
    record.on_return(returned(1, 10.0, (1, 2)))
    record.on_return(dataclasses.replace(returned(1, 12.0, (1, 2)), attempts=3, aborts=1))

    assert (record.calls, record.attempts, record.aborts, record.retried_calls) == (2, 4, 1, 1)
    assert record.worst_gap_s == pytest.approx(2.0)


def test_a_spread_is_median_and_worst() -> None:
    assert spread_of([1.0, 5.0, 2.0]) == Spread(3, 2.0, 5.0)
    assert spread_of([]) is None
