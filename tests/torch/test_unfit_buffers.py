"""Buffers that are not finite: masks that are meant so, and running means that became so."""

import math
from typing import Any

import pytest

from ringhaul.diloco import SGD, RoundInfo
from ringhaul.testing.meetings import MeetingComm, MeetingGroup, meet

torch = pytest.importorskip("torch")
nn = torch.nn

import ringhaul.torch as ringhaul_torch  # noqa: E402 - needs torch

LOOPS: dict[str, dict[str, Any]] = {
    "DiLoCo": {},
    "DelayedDiLoCo": {"eager": True, "staleness_penalty": True},
    "StreamingDiLoCo": {"fragments": 1, "overlap": 0, "mixing": 0.5},
}


class Masked(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
    """One weight, a mask as models of text have it, and a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([10.0]))
        self.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
        self.register_buffer("mean", torch.tensor([1.0, 1.0]))


def train(name: str, group: MeetingGroup, loop: str, spoil: Any) -> tuple[Any, list[RoundInfo]]:  # noqa: ANN401
    model = Masked()
    inner = torch.optim.SGD(model.parameters(), lr=1.0)
    comm = MeetingComm(group, name)
    kind = getattr(ringhaul_torch, loop)
    outer = kind(model, inner, comm, 1, outer_optimizer=SGD(1.0), **LOOPS[loop])
    infos: list[RoundInfo] = []
    outer.on_round = infos.append
    for _ in range(4):
        with torch.no_grad():
            model.weight.sub_(1.0)
            model.mean.add_(2.0)
            spoil(model)
        outer.step()
    outer.finish()
    return model, infos


@pytest.mark.parametrize("loop", LOOPS)
def test_a_mask_of_minus_infinities_stays_and_the_model_trains(loop: str) -> None:
    model, infos = train("a", MeetingGroup(["a"]), loop, lambda _: None)

    assert not any(info.rejected for info in infos)
    assert model.weight.item() == pytest.approx(6.0, abs=2.0)  # the penalty slows it down
    assert model.mask.flatten().tolist() == [0.0, -math.inf, 0.0, 0.0]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_running_mean_that_is_spoilt_is_left_out_and_healed(
    loop: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    group = MeetingGroup(["a", "b"])
    ends: dict[str, tuple[Any, list[RoundInfo]]] = {}

    def spoil(model: Any) -> None:  # noqa: ANN401
        model.mean[0] = value

    def go(name: str) -> None:
        ends[name] = train(name, group, loop, spoil if name == "b" else lambda _: None)

    meet(lambda: go("a"), lambda: go("b"))

    for model, infos in ends.values():
        assert not any(info.rejected for info in infos)
        assert torch.isfinite(model.mean).all()
    assert ends["a"][0].weight.item() == ends["b"][0].weight.item() < 10.0
    assert "'buffer:mean' is not finite: it stays as it is in the run" in caplog.text


def test_a_parameter_that_is_spoilt_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def spoil(model: Any) -> None:  # noqa: ANN401
        model.weight[0] = math.nan

    model, infos = train("a", MeetingGroup(["a"]), "DiLoCo", spoil)

    assert all(info.rejected for info in infos)
    assert model.weight.item() == 10.0
    assert "'weight' is not finite: this peer gives nothing" in caplog.text
