"""Weighted averages, rounds that end by the clock, and losses between a sum and its tally."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul.diloco import SGD, DiLoCo, RoundInfo
from ringhaul.errors import CollectiveAborted
from ringhaul.testing.meetings import MeetingComm, MeetingGroup, meet, without_tallies

Array = NDArray[np.floating]


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def one(value: float) -> dict[str, Array]:
    return {"w": np.array([value], np.float32)}


def train_one_round(
    group: MeetingGroup,
    name: str,
    changes: list[float],
    weight: float,
    ends: dict[str, tuple[float, RoundInfo]],
    max_seconds_per_round: float | None = None,
) -> None:
    """One inner step for each change; the clock goes on by a second in each."""
    clock = Clock()
    params = one(10.0)
    outer = DiLoCo(
        MeetingComm(group, name),
        params,
        4,
        optimizer=SGD(1.0),
        clock=clock,
        max_seconds_per_round=max_seconds_per_round,
    )
    info = None
    for change in changes:
        assert info is None
        params["w"] += np.float32(change)
        clock.now += 1.0
        info = outer.step(weight)
    assert info is not None
    ends[name] = (float(params["w"][0]), info)
    assert outer.weight_done == info.weight
    assert outer.inner_steps_done == info.inner_steps


def test_an_average_by_tokens_by_hand() -> None:
    group = MeetingGroup(["a", "b"])
    ends: dict[str, tuple[float, RoundInfo]] = {}

    # a: 4 steps of -1 with 300 tokens each, b: 4 of -2 with 100: (4 * 1200 + 8 * 400) / 1600 = 5
    meet(
        lambda: train_one_round(group, "a", [-1.0] * 4, 300.0, ends),
        lambda: train_one_round(group, "b", [-2.0] * 4, 100.0, ends),
    )

    assert (ends["a"][0], ends["b"][0]) == (5.0, 5.0)
    info = ends["a"][1]
    assert (info.weight, info.inner_steps, info.counted, info.own_share) == (1600.0, 8, 2, 0.75)


def test_a_slow_peer_ends_its_round_by_the_clock_and_counts_what_it_did() -> None:
    group = MeetingGroup(["fast", "slow"])
    ends: dict[str, tuple[float, RoundInfo]] = {}

    # fast: -1 in each of 4 steps; slow: -7 in its only one: (4 * 4 + 7 * 1) / 5 = 4.6
    meet(
        lambda: train_one_round(group, "fast", [-1.0] * 4, 1.0, ends),
        lambda: train_one_round(group, "slow", [-7.0], 1.0, ends, max_seconds_per_round=0.5),
    )

    assert ends["fast"][0] == ends["slow"][0] == pytest.approx(10.0 - 4.6)
    info = ends["slow"][1]
    assert (info.position, info.inner_steps, info.weight) == (4, 5, 5.0)
    assert info.own_share == 0.2


def test_a_round_by_the_clock_ends_after_the_first_step_beyond_it() -> None:
    group = MeetingGroup(["a"])
    ends: dict[str, tuple[float, RoundInfo]] = {}

    meet(lambda: train_one_round(group, "a", [-1.0] * 3, 1.0, ends, max_seconds_per_round=2.5))

    assert ends["a"][1].inner_steps == 3


def test_a_peer_whose_parameters_are_not_finite_gives_nothing_and_gets_the_others() -> None:
    group = MeetingGroup(["a", "b"])
    ends: dict[str, tuple[float, RoundInfo]] = {}

    meet(
        lambda: train_one_round(group, "a", [-1.0] * 4, 1.0, ends),
        lambda: train_one_round(group, "b", [np.nan] * 4, 1.0, ends),
    )

    assert (ends["a"][0], ends["b"][0]) == (6.0, 6.0)
    info = ends["b"][1]
    assert (info.rejected, info.counted, info.world_size, info.own_share) == (True, 1, 2, 0.0)
    assert not ends["a"][1].rejected


def test_a_round_in_which_nobody_is_sound_is_no_outer_step() -> None:
    group = MeetingGroup(["a"])
    ends: dict[str, tuple[float, RoundInfo]] = {}

    meet(lambda: train_one_round(group, "a", [np.inf] * 4, 1.0, ends))

    assert ends["a"][0] == 10.0
    assert (ends["a"][1].round, ends["a"][1].counted) == (0, 0)


def lossy_round(
    where: str, *, sums_first: bool = False
) -> tuple[MeetingGroup, dict[str, tuple[float, RoundInfo]]]:
    """a, b and c average 4, 8 and 12; c, with twice the weight, is lost at `where`."""
    group = MeetingGroup(["a", "b", "c"], losses={where: ["c"]}, sums_first=sums_first)
    ends: dict[str, tuple[float, RoundInfo]] = {}
    meet(
        lambda: train_one_round(group, "a", [-1.0] * 4, 1.0, ends),
        lambda: train_one_round(group, "b", [-2.0] * 4, 1.0, ends),
        lambda: train_one_round(group, "c", [-3.0] * 4, 2.0, ends),
    )
    return group, ends


@pytest.mark.parametrize(
    ("where", "log"),
    [
        ("tally", ["tally", "reduce/0"]),
        # c is in the tally, but not in the sum: the tally is made again
        ("reduce/0", ["tally", "reduce/0", "tally"]),
    ],
)
def test_a_loss_before_the_sum_leaves_out_both_the_gradient_and_its_weight(
    where: str, log: list[str]
) -> None:
    group, ends = lossy_round(where)

    assert {name: end[0] for name, end in ends.items()} == {"a": 4.0, "b": 4.0}
    assert ends["a"][1].contributors == ("a", "b")
    assert group.log == ["sync", *log, "admit"]


def test_a_loss_after_the_sum_and_before_its_tally_makes_the_sum_again() -> None:
    group, ends = lossy_round("tally", sums_first=True)

    assert {name: end[0] for name, end in ends.items()} == {"a": 4.0, "b": 4.0}
    assert group.log == ["sync", "reduce/0", "tally", "reduce/0", "admit"]


def test_who_comes_while_members_are_too_few_has_made_one_inner_step_by_then() -> None:
    group = MeetingGroup(["a"], failures={"tally": [CollectiveAborted("1 of 2 members")]})
    group.failures["reduce/0"] = [CollectiveAborted("1 of 2 members")]
    ends: dict[str, tuple[float, RoundInfo]] = {}

    def newcomer() -> None:
        train_one_round(group, "b", [-8.0], 1.0, ends)

    group.newcomers = ["b"]
    meet(lambda: train_one_round(group, "a", [-1.0] * 4, 1.0, ends), newcomer)

    # 4 in 4 steps, 8 in one: (4 * 4 + 8 * 1) / 5
    assert ends["a"][0] == ends["b"][0] == pytest.approx(10.0 - 4.8)
    assert without_tallies(group.log) == ["sync", "reduce", "admit", "sync", "reduce", "admit"]


@pytest.mark.parametrize("weight", [0.0, -1.0, np.inf, np.nan])
def test_a_weight_is_finite_and_above_0(weight: float) -> None:
    outer = DiLoCo(MeetingComm(MeetingGroup(["a"]), "a"), one(1.0), 1)

    with pytest.raises(ValueError, match="weight"):
        outer.step(weight)


@pytest.mark.parametrize("weight", ["5", None, [1.0]])
def test_a_weight_is_a_number(weight: object) -> None:
    outer = DiLoCo(MeetingComm(MeetingGroup(["a"]), "a"), one(1.0), 1)

    with pytest.raises(TypeError, match="weight is a number"):
        outer.step(weight)  # type: ignore[arg-type]


def test_a_weight_that_is_refused_is_not_counted_and_others_add_up_in_float64() -> None:
    outer = DiLoCo(MeetingComm(MeetingGroup(["a"]), "a"), one(1.0), 2)
    many = np.float32(2**24)
    outer.step(many)
    with pytest.raises(ValueError, match="weight"):
        outer.step(np.float32(np.nan))
    info = outer.step(np.ones((), np.float32))

    assert info is not None
    assert (info.inner_steps, info.weight, type(info.weight)) == (2, 2.0**24 + 1.0, float)


def test_a_time_limit_is_above_0() -> None:
    with pytest.raises(ValueError, match="max_seconds_per_round"):
        DiLoCo(MeetingComm(MeetingGroup(["a"]), "a"), one(1.0), 1, max_seconds_per_round=0.0)
