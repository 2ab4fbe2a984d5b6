"""DiLoCo over groups of peers that live in threads of this process and meet in memory."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul.diloco.delayed import DelayedDiLoCo
from ringhaul.diloco.outer import SGD
from ringhaul.diloco.sync import DiLoCo, RoundInfo
from ringhaul.errors import CallTimeout, CollectiveAborted
from ringhaul.testing.meetings import (
    Admitted,
    MeetingComm,
    MeetingGroup,
    meet,
    without_tallies,
)

Array = NDArray[np.floating]


def one(value: float) -> dict[str, Array]:
    return {"w": np.array([value], np.float32)}


def alone(
    params: dict[str, Array], inner_steps: int = 1, optimizer: SGD | None = None
) -> tuple[DiLoCo, MeetingGroup]:
    group = MeetingGroup(["a"])
    outer = DiLoCo(MeetingComm(group, "a"), params, inner_steps, optimizer=optimizer)
    return outer, group


def inner(outer: DiLoCo, params: dict[str, Array], change: float) -> RoundInfo | None:
    params["w"] += np.float32(change)
    return outer.step()


def test_a_round_alone_by_hand() -> None:
    params = one(10.0)
    outer, group = alone(params, 2, SGD(0.5, momentum=0.5, nesterov=True))

    assert inner(outer, params, -1.0) is None
    info = inner(outer, params, -1.0)

    # pseudo-gradient 2, buffer 2, along 2 + 0.5 * 2 = 3, times 0.5
    assert params["w"][0] == 8.5
    assert info is not None
    assert (info.round, info.world_size, info.contributors) == (1, 1, ("a",))
    assert info.gradient_norm == 2.0
    assert not info.admitted
    assert without_tallies(group.log) == ["sync", "reduce", "admit"]


def test_the_outer_momentum_reaches_over_rounds() -> None:
    params = one(10.0)
    outer, _ = alone(params, 1, SGD(1.0, momentum=0.5))

    inner(outer, params, -2.0)  # 10 - 2
    inner(outer, params, -1.0)  # 8 - (0.5 * 2 + 1)

    assert params["w"][0] == 6.0
    assert outer.state.arrays["momentum/w"][0] == 2.0


def test_members_step_along_the_average_of_their_pseudo_gradients() -> None:
    group = MeetingGroup(["a", "b"])
    ends: dict[str, float] = {}

    def train(name: str, change: float) -> None:
        params = one(4.0)
        outer = DiLoCo(MeetingComm(group, name), params, 1, optimizer=SGD(1.0))
        inner(outer, params, change)
        ends[name] = float(params["w"][0])

    meet(lambda: train("a", -1.0), lambda: train("b", -3.0))

    assert ends == {"a": 2.0, "b": 2.0}


def test_a_newcomer_gets_the_state_and_stays_in_step_with_the_members() -> None:
    group = MeetingGroup(["a"])
    ends: dict[str, tuple[float, float, int]] = {}

    def train(name: str, rounds: int) -> None:
        params = one(8.0 if name == "a" else -99.0)
        outer = DiLoCo(
            MeetingComm(group, name), params, 2, optimizer=SGD(1.0, momentum=0.5, nesterov=True)
        )
        for number in range(rounds):
            if name == "a" and number == 1:
                group.newcomers = ["b"]
            inner(outer, params, -0.5)
            inner(outer, params, -0.5)
        momentum = outer.state.arrays["momentum/w"]
        ends[name] = (float(params["w"][0]), float(momentum[0]), outer.round)

    meet(lambda: train("a", 5), lambda: train("b", 3))

    assert ends["a"] == ends["b"]
    assert ends["a"][2] == 5
    assert without_tallies(group.log) == [
        "sync", "reduce", "admit", "reduce", "admit", "sync", *["reduce", "admit"] * 3
    ]  # fmt: skip


def test_revisions_follow_on_each_other_however_many_rounds_lie_between_syncs() -> None:
    group = MeetingGroup(["a"])
    params = one(1.0)
    outer = DiLoCo(MeetingComm(group, "a"), params, 1)

    def newcomer(name: str) -> None:
        DiLoCo(MeetingComm(group, name), one(0.0), 1)
        group.names.remove(name)  # leaves again

    for number in range(6):
        if number % 3 == 2:
            group.newcomers = [f"b{number}"]
            meet(lambda: inner(outer, params, -0.1), lambda n=number: newcomer(f"b{n}"))  # type: ignore[misc]
        else:
            inner(outer, params, -0.1)

    assert group.last_revision == 2
    assert outer.state.revision == 2


def test_params_are_set_to_the_elected_ones_at_once() -> None:
    group = MeetingGroup(["a", "b"])
    group.synced = {"a"}
    theirs = one(-5.0)

    meet(
        lambda: DiLoCo(MeetingComm(group, "a"), one(3.0), 1),
        lambda: DiLoCo(MeetingComm(group, "b"), theirs, 1),
    )

    assert theirs["w"][0] == 3.0


def test_too_few_members_admit_and_then_average_what_they_had() -> None:
    params = one(10.0)
    outer, group = alone(params, 1, SGD(1.0))
    group.failures["reduce/0"] = [CollectiveAborted("1 of 2 members")]

    inner(outer, params, -2.0)

    assert params["w"][0] == 8.0
    assert without_tallies(group.log) == ["sync", "reduce", "admit", "reduce", "admit"]


def test_a_newcomer_met_in_a_sync_with_too_few_members_is_synced_after_admit() -> None:
    group = MeetingGroup(["a"])
    group.failures["sync"] = [CollectiveAborted("1 of 2 members")]

    DiLoCo(MeetingComm(group, "a"), one(1.0), 1)

    assert without_tallies(group.log) == ["sync", "admit", "sync"]


@pytest.mark.parametrize("kind", ["reduce", "admit"])
def test_a_round_goes_on_after_a_timeout_without_doing_anything_twice(kind: str) -> None:
    params = one(10.0)
    outer, group = alone(params, 1, SGD(1.0))
    group.failures["reduce/0" if kind == "reduce" else kind] = [CallTimeout("late")]

    with pytest.raises(CallTimeout):
        inner(outer, params, -2.0)
    info = outer.step()

    assert info is not None
    assert info.round == 1
    assert params["w"][0] == 8.0
    assert group.log.count("reduce/0") == (2 if kind == "reduce" else 1)


def test_a_sync_after_an_admission_is_made_up_for_after_a_timeout() -> None:
    params = one(10.0)
    outer, group = alone(params, 1, SGD(1.0))
    outer.step()
    group.settle_admit = lambda payloads: Admitted(True)  # type: ignore[method-assign]
    group.failures["sync"] = [CallTimeout("late")]

    with pytest.raises(CallTimeout):
        outer.step()
    info = outer.step()

    assert info is not None
    assert info.admitted
    assert without_tallies(group.log)[-4:] == ["reduce", "admit", "sync", "sync"]
    assert group.last_revision == 1


def test_parameters_are_flattened_by_name_whatever_their_order_and_shape() -> None:
    group = MeetingGroup(["a", "b"])
    shapes = {"m": (2, 3), "scalar": (), "empty": (0,), "v": (4,)}
    ends: list[dict[str, Array]] = []

    def train(name: str, order: list[str]) -> None:
        params: dict[str, Array] = {key: np.full(shapes[key], len(key), float) for key in order}
        outer = DiLoCo(MeetingComm(group, name), params, 1, optimizer=SGD(1.0))
        for array in params.values():
            array -= np.arange(array.size, dtype=float).reshape(array.shape)
        outer.step()
        ends.append(params)

    meet(lambda: train("a", list(shapes)), lambda: train("b", list(shapes)[::-1]))

    for params in ends:
        for key, shape in shapes.items():
            steps = np.arange(np.prod(shape, dtype=int), dtype=float).reshape(shape)
            np.testing.assert_array_equal(params[key], len(key) - steps)


def test_an_entry_may_be_replaced_between_steps() -> None:
    params = one(10.0)
    outer, _ = alone(params, 1, SGD(1.0))

    params["w"] = params["w"] - np.float32(2.0)
    outer.step()

    assert params["w"][0] == 8.0
    params["w"] = np.array([1.0])
    with pytest.raises(TypeError, match="'w' became float64; the run has float32"):
        outer.step()
    params["w"] = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=r"'w' became \(2,\)"):
        outer.step()


def test_params_that_cannot_be_trained_are_refused() -> None:
    frozen = np.ones(2, np.float32)
    frozen.flags.writeable = False

    with pytest.raises(ValueError, match="empty"):
        alone({})
    with pytest.raises(TypeError, match="float16"):
        alone({"w": np.ones(2, np.float16)})
    with pytest.raises(TypeError, match="float32, float64"):
        alone({"w": np.ones(2, np.float32), "v": np.ones(2)})
    with pytest.raises(ValueError, match="'w' is read-only"):
        alone({"w": frozen})
    with pytest.raises(TypeError, match="a dict of NumPy arrays"):
        alone([np.ones(2, np.float32)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'w' is a list, not a NumPy array"):
        alone({"w": [1.0, 2.0]})  # type: ignore[dict-item]


def test_a_schedule_or_a_codec_that_cannot_be_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="inner_steps"):
        alone(one(1.0), 0)
    with pytest.raises(TypeError, match="inner_steps"):
        alone(one(1.0), 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no codec 'uint5'"):
        DiLoCo(MeetingComm(MeetingGroup(["a"]), "a"), one(1.0), 1, codec="uint5")


class Awaited:
    """As the communicator of `ringhaul.aio`."""

    def all_reduce_async(self) -> None:
        """Exists."""

    async def sync_state(self) -> None:
        """Has to be awaited."""


@pytest.mark.parametrize("comm", ["localhost:1", None, Awaited()])
def test_what_is_no_communicator_is_refused(comm: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=r"comm is what ringhaul.connect"):
        DiLoCo(comm, one(1.0), 1)


@pytest.mark.parametrize("loop", [DiLoCo, DelayedDiLoCo])
def test_what_is_no_outer_optimizer_is_refused(loop: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match="the outer optimizer is nesterov"):
        loop(MeetingComm(MeetingGroup(["a"]), "a"), one(1.0), 1, optimizer="sgd")


def test_peers_may_be_let_in_between_two_rounds() -> None:
    group = MeetingGroup(["a"])
    params = one(3.0)
    outer = DiLoCo(MeetingComm(group, "a"), params, 1)
    theirs = one(0.0)
    group.newcomers = ["b"]

    meet(
        lambda: outer.admit(),
        lambda: DiLoCo(MeetingComm(group, "b"), theirs, 1),
    )

    assert theirs["w"][0] == 3.0
    assert group.log == ["sync", "admit", "sync"]
