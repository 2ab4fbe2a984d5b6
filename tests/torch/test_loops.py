"""The training loops for modules: dtypes, tied weights, buffers, hooks, checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringhaul import diloco
from ringhaul.diloco import SGD
from ringhaul.testing.meetings import MeetingComm, MeetingGroup, meet

torch = pytest.importorskip("torch")
nn = torch.nn

import ringhaul.torch as ringhaul_torch  # noqa: E402 - needs torch


def alone() -> MeetingComm:
    return MeetingComm(MeetingGroup(["a"]), "a")


class Scale(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
    """One weight, and a running mean of it."""

    def __init__(self, value: float, dtype: Any = torch.float32) -> None:  # noqa: ANN401
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=dtype))
        self.register_buffer("mean", torch.tensor([value]))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("scratch", torch.tensor([1.0]), persistent=False)


def sgd_step(model: Any, optimizer: Any, gradient: float) -> None:  # noqa: ANN401
    """One inner step along a known gradient."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


def test_a_block_counts_the_steps_of_the_optimizer_by_hand() -> None:
    model = Scale(10.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rounds: list[int] = []

    with ringhaul_torch.DiLoCo(model, optimizer, alone(), 2, outer_optimizer=SGD(0.5)) as outer:
        outer.on_round = lambda info: rounds.append(info.round)
        sgd_step(model, optimizer, 1.0)
        assert model.weight.item() == 9.0
        sgd_step(model, optimizer, 1.0)
    sgd_step(model, optimizer, 1.0)  # no longer counted
    sgd_step(model, optimizer, 1.0)

    assert rounds == [1]
    assert model.weight.item() == 10.0 - 0.5 * 2 - 2


def test_a_block_that_is_entered_twice_counts_each_step_once_and_none_after_it() -> None:
    model = Scale(10.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    outer = ringhaul_torch.DiLoCo(model, optimizer, alone(), 1)
    with outer:
        with outer:
            sgd_step(model, optimizer, 1.0)
        assert outer.position == 1
        sgd_step(model, optimizer, 1.0)
    sgd_step(model, optimizer, 1.0)

    assert outer.position == 2


def test_another_inner_optimizer_is_counted_once_the_loop_is_entered_again() -> None:
    model = Scale(10.0)
    before = torch.optim.SGD(model.parameters(), lr=1.0)
    outer = ringhaul_torch.DiLoCo(model, before, alone(), 1)
    with outer:
        after = torch.optim.SGD(model.parameters(), lr=0.5)
        outer.inner = after
        with outer:
            sgd_step(model, after, 1.0)
            sgd_step(model, before, 1.0)

    assert outer.position == 1
    assert outer.state_dict()["inner"]["param_groups"][0]["lr"] == 0.5


def test_two_peers_average_parameters_and_buffers_by_hand() -> None:
    group = MeetingGroup(["a", "b"])
    ends: dict[str, tuple[float, ...]] = {}

    def train(name: str, gradient: float, mean: float) -> None:
        model = Scale(10.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        outer = ringhaul_torch.DiLoCo(
            model, optimizer, MeetingComm(group, name), 1, outer_optimizer=SGD(0.5, momentum=0.9)
        )
        for _ in range(2):
            sgd_step(model, optimizer, gradient)
            model.mean.fill_(mean)
            model.count += 1
            outer.step()
        ends[name] = (model.weight.item(), model.mean.item(), model.count.item())

    meet(lambda: train("a", 1.0, 4.0), lambda: train("b", 3.0, 6.0))

    # momentum 2, then 0.9 * 2 + 2; the mean of the buffers knows no momentum
    assert ends["a"] == ends["b"]
    assert ends["a"] == pytest.approx((10.0 - 0.5 * 2 - 0.5 * 3.8, 5.0, 2))


def test_a_newcomer_gets_parameters_and_buffers() -> None:
    group = MeetingGroup(["a", "b"])
    group.synced = {"a"}
    models = {"a": Scale(3.0), "b": Scale(-7.0)}

    def join(name: str) -> None:
        model = models[name]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        ringhaul_torch.DiLoCo(model, optimizer, MeetingComm(group, name), 1)

    meet(lambda: join("a"), lambda: join("b"))

    assert models["b"].weight.item() == models["b"].mean.item() == 3.0


def test_tied_parameters_take_part_once_and_frozen_ones_not() -> None:
    class Tied(nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight
            self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    store = ringhaul_torch.ModuleStore(Tied())

    assert dict(store.shapes) == {"embedding.weight": (5, 3)}


def test_mixed_dtypes_round_as_the_parameters_do() -> None:
    model = nn.Module()
    model.single = nn.Parameter(torch.tensor([1.0]))
    model.brain = nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    model.small = nn.Parameter(torch.tensor([1.0], dtype=torch.float16))
    store = ringhaul_torch.ModuleStore(model)
    fine = 1.0 + 2.0**-12
    values = np.full(3, fine, np.float32)

    store.write(["single", "brain", "small"], values)
    read = np.zeros(3, np.float32)
    store.read(["single", "brain", "small"], read)
    store.round(["single", "brain", "small"], values)

    assert store.is_rounding
    assert list(read) == [np.float32(fine), 1.0, 1.0]
    assert list(values) == list(read)


def test_rounding_is_no_pseudo_gradient() -> None:
    model = Scale(1.0, torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    outer = ringhaul_torch.DiLoCo(model, optimizer, alone(), 1, outer_optimizer=SGD(0.01))
    fine = 0.01 * 2.0**-4

    sgd_step(model, optimizer, 2.0**-4)
    outer.step()
    for _ in range(3):  # nothing is learned in these
        outer.step()

    # the outer parameter keeps what is too small for the inner one
    assert model.weight.item() == 1.0
    assert outer.state.arrays["outer/weight"][0] == np.float32(1.0) - np.float32(fine)


def test_a_module_of_float64_is_averaged_in_float64() -> None:
    store = ringhaul_torch.ModuleStore(nn.Linear(2, 2).double())

    assert store.dtype == np.float64
    assert not store.is_rounding


def test_layers_of_a_module_are_streamed() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outer = ringhaul_torch.StreamingDiLoCo(
        model, optimizer, alone(), 4, fragments=4, overlap=1, mixing=0.5
    )
    fragments = []
    for _ in range(9):
        sgd_step(model, optimizer, 1.0)
        info = outer.step()
        fragments += [] if info is None or not info.counted else [info.fragment]

    assert fragments == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_checkpoint_is_of_plain_tensors_and_goes_on(tmp_path: Path) -> None:
    model = Scale(10.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    outer = ringhaul_torch.DelayedDiLoCo(model, optimizer, alone(), 1)
    for _ in range(3):
        sgd_step(model, optimizer, 1.0)
        outer.step()
    torch.save(outer.state_dict(), tmp_path / "run.pt")

    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    again = Scale(0.0)
    inner = torch.optim.AdamW(again.parameters(), lr=0.5)
    resumed = ringhaul_torch.DelayedDiLoCo(again, inner, alone(), 1, resume=saved)

    assert again.weight.item() == model.weight.item()
    assert (resumed.round, resumed.position) == (2, 3)
    before, after = (o.state.arrays["momentum/weight"][0] for o in (outer, resumed))
    assert before == after
    assert (
        inner.state_dict()["state"][0]["exp_avg"] == optimizer.state_dict()["state"][0]["exp_avg"]
    )


class Elsewhere(torch.Tensor):  # type: ignore[misc, name-defined, unused-ignore]
    """A tensor that NumPy cannot read, as one on a device."""

    def __array__(self, *_: object, **__: object) -> Any:  # noqa: ANN401
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self) -> Any:  # noqa: ANN401
        """As plain memory."""
        return self.as_subclass(torch.Tensor)


def test_a_checkpoint_may_be_loaded_to_a_device() -> None:
    model = Scale(10.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    saved = ringhaul_torch.DiLoCo(model, optimizer, alone(), 1).state_dict()
    saved["arrays"] = {name: a.as_subclass(Elsewhere) for name, a in saved["arrays"].items()}

    again = Scale(0.0)
    inner = torch.optim.SGD(again.parameters(), lr=1.0)
    ringhaul_torch.DiLoCo(again, inner, alone(), 1, resume=saved)

    assert again.weight.item() == 10.0


def test_a_weight_may_be_a_tensor_of_one_element() -> None:
    model = Scale(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    outer = ringhaul_torch.DiLoCo(model, optimizer, alone(), 2)
    outer.step(torch.tensor(5))
    info = outer.step(torch.tensor(2.5))

    assert info is not None
    assert (info.inner_steps, info.weight) == (2, 7.5)


def test_the_variables_of_torchrun_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "192.0.2.1"}.items():
        monkeypatch.setenv(name, value)
    model = Scale(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    outer = ringhaul_torch.DiLoCo(model, optimizer, alone(), 1)

    assert outer.step() is not None


def test_what_cannot_be_averaged_is_refused() -> None:
    frozen = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(ValueError, match="requires a gradient"):
        ringhaul_torch.ModuleStore(frozen)
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="complex64"):
        ringhaul_torch.ModuleStore(model)


def load_assigned(model: Any) -> None:  # noqa: ANN401
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(kept, assign=True)


def replace_weight(model: Any) -> None:  # noqa: ANN401
    model.weight = nn.Parameter(model.weight.detach().clone())


def remove_weight(model: Any) -> None:  # noqa: ANN401
    del model.weight


def remove_mean(model: Any) -> None:  # noqa: ANN401
    del model.mean


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (load_assigned, "'weight' was replaced"),
        (replace_weight, "'weight' was replaced"),
        (remove_mean, "'buffer:mean' was replaced"),
        (remove_weight, "'weight' was replaced"),
        (lambda model: model.double(), "'weight' became torch.float64; the run has torch.float32"),
        (lambda model: model.half(), "'weight' became torch.float16"),
    ],
)
def test_a_tensor_that_is_replaced_or_converted_is_refused(change: Any, message: str) -> None:  # noqa: ANN401
    model = Scale(10.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    outer = ringhaul_torch.DiLoCo(model, optimizer, alone(), 1)
    outer.step()
    change(model)

    with pytest.raises((TypeError, ValueError), match=message):
        outer.step()


def test_what_is_changed_in_place_or_in_its_storage_is_not_replaced() -> None:
    model = Scale(10.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    outer = ringhaul_torch.DiLoCo(model, optimizer, alone(), 1, outer_optimizer=SGD(1.0))
    model.load_state_dict({**model.state_dict(), "weight": torch.tensor([7.0])})
    model.weight.data = model.weight.data - 1.0
    model.mean = model.mean * 0.5  # as many modules write their running means
    outer.step()

    assert model.weight.item() == outer.state.arrays["outer/weight"][0] == 6.0
    assert model.mean.item() == outer.state.arrays["outer/buffer:mean"][0] == 5.0


def test_what_is_mistaken_for_something_else_is_a_type_error() -> None:
    model: Any = nn.Linear(2, 2)
    inner: Any = torch.optim.SGD(model.parameters(), lr=1.0)
    comm: Any = alone()
    kinds = (ringhaul_torch.DiLoCo, ringhaul_torch.DelayedDiLoCo)
    for kind in kinds:
        with pytest.raises(TypeError, match=r"model is a torch.nn.Module, not a torch.optim.*SGD"):
            kind(inner, model, comm, 2)
        with pytest.raises(TypeError, match=r"optimizer is the inner one.*not a torch.*Linear"):
            kind(model, model, comm, 2)
        with pytest.raises(TypeError, match=r"optimizer is the inner one.*not a .*MeetingComm"):
            kind(model, comm, inner, 2)
        with pytest.raises(TypeError, match=r"comm is what ringhaul.connect.*not a torch.optim"):
            kind(model, inner, inner, 2)
        with pytest.raises(TypeError, match=r"the outer optimizer is nesterov.*not a torch.optim"):
            kind(model, inner, comm, 2, outer_optimizer=inner)


def test_tensors_by_name_are_for_the_loops_of_this_package() -> None:
    named: Any = dict(nn.Linear(2, 2).named_parameters())
    detached: Any = {name: tensor.detach() for name, tensor in named.items()}

    for params, kind in ((named, "Parameter"), (detached, "Tensor")):
        with pytest.raises(TypeError, match=f"is a {kind}, not a NumPy array.*ringhaul.torch"):
            diloco.DiLoCo(alone(), params, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("loop", ["DiLoCo", "DelayedDiLoCo", "StreamingDiLoCo"])
def test_on_cuda_the_same_comes_out_as_on_the_cpu(loop: str) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))).to(device)
        model[1].bfloat16()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
        outer = getattr(ringhaul_torch, loop)(model, optimizer, alone(), 4)
        for number in range(12):
            sgd_step(model, optimizer, 2.0**-number)
            outer.step()
        ends.append(np.concatenate([p.float().cpu().detach().ravel() for p in model.parameters()]))

    np.testing.assert_array_equal(ends[0], ends[1])
