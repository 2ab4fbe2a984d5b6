"""One-step-delayed DiLoCo by hand: what is in the pipeline when somebody comes, goes or fails."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul.diloco import SGD, AdamW, DelayedDiLoCo, OuterOptimizer, RoundInfo, nesterov
from ringhaul.errors import CallTimeout, CollectiveAborted
from ringhaul.testing.meetings import Admitted, MeetingComm, MeetingGroup, meet, without_tallies

Array = NDArray[np.floating]
Ends = dict[str, list[tuple[float, float]]]


def one(value: float) -> dict[str, Array]:
    return {"w": np.array([value], np.float32)}


class Peer:
    """One parameter, one inner step to a round; keeps outer parameter and momentum by round."""

    def __init__(
        self,
        group: MeetingGroup,
        name: str,
        *,
        value: float = 10.0,
        optimizer: OuterOptimizer | None = None,
        eager: bool = False,
        staleness_penalty: bool = False,
    ) -> None:
        self.params = one(value)
        self.outer = DelayedDiLoCo(
            MeetingComm(group, name),
            self.params,
            1,
            optimizer=SGD(1.0) if optimizer is None else optimizer,
            eager=eager,
            staleness_penalty=staleness_penalty,
        )
        self.seen: dict[int, tuple[float, float]] = {}

    def go(self, change: float) -> RoundInfo:
        self.params["w"] += np.float32(change)
        info = self.outer.step()
        assert info is not None
        arrays = self.outer.state.arrays
        momentum = float(arrays["momentum/w"][0]) if "momentum/w" in arrays else 0.0
        self.seen[info.position] = (float(arrays["outer/w"][0]), momentum)
        return info

    @property
    def value(self) -> float:
        return float(self.params["w"][0])

    @property
    def outer_value(self) -> float:
        return float(self.outer.state.arrays["outer/w"][0])


def test_a_round_is_stepped_along_at_the_end_of_the_next_by_hand() -> None:
    group = MeetingGroup(["a"])
    peer = Peer(group, "a", optimizer=SGD(0.5, momentum=0.5))

    first = peer.go(-2.0)  # pseudo-gradient 2 is posted; the next round begins at 10 again
    assert (peer.value, first.round, first.contributors) == (10.0, 0, ())
    second = peer.go(-4.0)  # 10 - 0.5 * 2; pseudo-gradient 4 is posted
    assert (peer.value, second.round, second.contributors) == (9.0, 1, ("a",))
    peer.go(-1.0)  # momentum 0.5 * 2 + 4 = 5; 9 - 0.5 * 5
    assert peer.value == peer.outer_value == 6.5
    assert without_tallies(group.log) == ["sync", "reduce", "reduce"]


def test_nobody_votes_on_admission_while_nobody_waits() -> None:
    group = MeetingGroup(["a"])
    peer = Peer(group, "a")
    for _ in range(3):
        peer.go(-1.0)

    assert "admit" not in group.log


def test_with_several_groups_members_always_vote() -> None:
    group = MeetingGroup(["a"])
    outer = DelayedDiLoCo(MeetingComm(group, "a", group_count=2), one(1.0), 1)
    outer.step()

    assert group.log == ["sync", "admit"]


def test_the_eager_variant_begins_a_round_with_the_own_share_by_hand() -> None:
    group = MeetingGroup(["a", "b"])
    starts: dict[str, list[float]] = {}
    ends: dict[str, float] = {}

    def train(name: str, changes: list[float]) -> None:
        peer = Peer(group, name, eager=True)
        starts[name] = []
        for change in changes:
            peer.go(change)
            starts[name].append(peer.value)
        ends[name] = peer.outer_value

    meet(lambda: train("a", [-2.0, -4.0, 0.0]), lambda: train("b", [-6.0, -8.0, 0.0]))

    # a: 10 - 2/2; then outer 10 - (2 + 6) / 2 = 6, begins at 6 - 4/2; then 6 - (4 + 8) / 2 = 0
    assert starts["a"] == [9.0, 4.0, 0.0]
    assert starts["b"] == [7.0, 2.0, 0.0]
    assert ends == {"a": 0.0, "b": 0.0}


def test_the_eager_variant_is_the_papers_update() -> None:
    """Own contributions in the round they are made, others' one later, one momentum for both."""
    group = MeetingGroup(["a", "b"])
    rng = np.random.default_rng(0)
    changes = rng.standard_normal((2, 6)).astype(np.float32)
    starts: dict[str, list[float]] = {}

    def train(name: str, row: int) -> None:
        peer = Peer(group, name, eager=True, optimizer=SGD(0.7, momentum=0.9, nesterov=True))
        starts[name] = []
        for change in changes[row]:
            peer.go(float(change))
            starts[name].append(peer.value)

    meet(lambda: train("a", 0), lambda: train("b", 1))

    for row, name in enumerate("ab"):
        value, momentum = 10.0, 0.0
        own, other = -changes[row], -changes[1 - row]
        for number in range(6):
            gradient = own[number] / 2 + (other[number - 1] / 2 if number else 0.0)
            momentum = 0.9 * momentum + gradient
            value -= 0.7 * (gradient + 0.9 * momentum)
            assert starts[name][number] == pytest.approx(value, abs=1e-5)


def test_eager_needs_a_linear_optimizer() -> None:
    for optimizer in (AdamW(0.1), SGD(0.1, momentum=0.9, momentum_clip=1.0)):
        with pytest.raises(ValueError, match="linear"):
            Peer(MeetingGroup(["a"]), "a", eager=True, optimizer=optimizer)


def test_the_staleness_penalty_by_hand() -> None:
    peer = Peer(MeetingGroup(["a"]), "a", staleness_penalty=True)

    peer.go(-2.0)
    peer.go(-4.0)  # nothing has moved yet: 10 - 2 / (1 + 0 / 2)
    assert peer.value == 8.0
    peer.go(-1.0)  # moved by 2 since the 4 were made: 8 - 4 / (1 + 2 / 4)
    assert peer.value == pytest.approx(8.0 - 4.0 / 1.5)


def test_a_newcomer_has_the_same_bits_from_its_first_outer_step() -> None:
    group = MeetingGroup(["a"])
    seen: dict[str, dict[int, tuple[float, float]]] = {}
    infos: dict[str, list[RoundInfo]] = {"a": [], "b": []}

    def train(name: str, rounds: int) -> None:
        value = 10.0 if name == "a" else -99.0
        peer = Peer(group, name, value=value, optimizer=SGD(0.7, momentum=0.9, nesterov=True))
        for number in range(rounds):
            if (name, number) == ("a", 1):
                group.newcomers = ["b"]  # seen in the verdict that ends round 2
            infos[name].append(peer.go(-1.0 if name == "a" else -3.0))
        seen[name] = peer.seen

    meet(lambda: train("a", 6), lambda: train("b", 4))

    assert sorted(seen["b"]) == [3, 4, 5, 6]
    assert all(seen["a"][position] == state for position, state in seen["b"].items())
    assert infos["a"][1].admitted
    # round 2 of a is averaged with nothing of b
    assert (infos["b"][0].contributors, infos["b"][0].counted) == (("a", "b"), 1)
    assert infos["b"][0].own_share == 0.0
    assert infos["b"][1].counted == 2
    assert without_tallies(group.log) == ["sync", "reduce", "admit", "sync", *["reduce"] * 4]


def test_who_is_lost_during_the_flight_is_left_out_by_hand() -> None:
    # both are in the tally, b not in the sum
    group = MeetingGroup(["a", "b"], losses={"reduce/0": ["b"]})
    values: dict[str, float] = {}

    def train(name: str, change: float) -> None:
        peer = Peer(group, name)
        peer.go(change)
        peer.go(-1.0)
        values[name] = peer.value

    meet(lambda: train("a", -2.0), lambda: train("b", -6.0))

    assert values == {"a": 8.0}


def test_too_few_members_regroup_and_go_on_with_the_newcomer() -> None:
    group = MeetingGroup(["a"])
    seen: dict[str, dict[int, tuple[float, float]]] = {}

    def train(name: str, rounds: int) -> None:
        peer = Peer(group, name, value=10.0 if name == "a" else -99.0)
        for number in range(rounds):
            if (name, number) == ("a", 1):
                for kind in ("tally", "reduce/0"):
                    group.failures[kind] = [CollectiveAborted("1 of 2 members")]
                group.newcomers = ["b"]
            peer.go(-2.0)
        seen[name] = peer.seen

    meet(lambda: train("a", 4), lambda: train("b", 3))

    # b came before the end of round 2, and has it before it as a has
    assert sorted(seen["b"]) == [2, 3, 4]
    assert all(seen["a"][position] == state for position, state in seen["b"].items())
    assert seen["a"][2] == (8.0, 0.0)
    log = without_tallies(group.log)
    assert log == ["sync", "reduce", "admit", "sync", *["reduce"] * 3]


@pytest.mark.parametrize("kind", ["tally", "reduce/0", "admit", "sync"])
def test_a_timeout_anywhere_leaves_nothing_out_and_does_nothing_twice(kind: str) -> None:
    group = MeetingGroup(["a"])
    peer = Peer(group, "a")
    peer.go(-2.0)
    group.failures[kind] = [CallTimeout("late")]
    if kind in ("admit", "sync"):  # somebody waits, is admitted, and is lost
        group.newcomers = ["ghost"]
        group.settle_admit = lambda payloads: Admitted(True)  # type: ignore[method-assign]
    peer.params["w"] -= np.float32(4.0)

    with pytest.raises(CallTimeout):
        peer.outer.step()
    info = peer.outer.step()

    assert info is not None
    assert (info.round, info.position) == (1, 2)
    assert peer.value == 8.0


def test_a_checkpoint_goes_on_without_what_was_on_its_way() -> None:
    peer = Peer(MeetingGroup(["a"]), "a", optimizer=SGD(1.0, momentum=0.5))
    for change in (-2.0, -4.0, -1.0):
        peer.go(change)
    saved = peer.outer.state_dict()

    params = one(0.0)
    outer = DelayedDiLoCo(
        MeetingComm(MeetingGroup(["b"]), "b"), params, 1, optimizer=SGD(1.0, 0.5), resume=saved
    )

    assert params["w"][0] == peer.outer_value
    assert (outer.round, outer.position, outer.inner_steps_done) == (2, 3, 2)
    assert outer.state.arrays["momentum/w"][0] == 5.0
    assert outer.state.revision == 3


def test_a_checkpoint_of_another_model_is_refused() -> None:
    saved = Peer(MeetingGroup(["a"]), "a").outer.state_dict()

    with pytest.raises(ValueError, match="outer/v"):
        DelayedDiLoCo(
            MeetingComm(MeetingGroup(["b"]), "b"),
            {"v": np.zeros(1, np.float32)},
            1,
            optimizer=SGD(1.0),
            resume=saved,
        )


def test_at_the_end_what_is_on_its_way_is_stepped_along() -> None:
    for eager in (False, True):
        peer = Peer(MeetingGroup(["a"]), "a", eager=eager)
        for change in (-2.0, -4.0):
            peer.go(change)
        peer.outer.finish()

        assert peer.value == peer.outer_value == 4.0


@pytest.mark.parametrize(
    ("optimizer", "settles"), [(None, True), (nesterov(), False)], ids=["default", "of DiLoCo"]
)
def test_the_default_optimizer_settles_although_every_gradient_is_late(
    optimizer: SGD | None, settles: bool
) -> None:
    params = one(1.0)
    outer = DelayedDiLoCo(MeetingComm(MeetingGroup(["a"]), "a"), params, 1, optimizer=optimizer)
    for _ in range(60):
        params["w"][0] = 0.0  # each round goes all the way to where all want to be
        outer.step()

    assert (abs(float(outer.state.arrays["outer/w"][0])) < 0.01) == settles
