import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul.diloco.exact import FOLD_COUNT, norm, power, squared_norm
from ringhaul.diloco.outer import (
    BLOCK_COUNT,
    SGD,
    AdamW,
    OuterOptimizer,
    make_optimizer,
    nesterov,
)


def torch_sgd(
    value: float, gradients: list[float], lr: float, momentum: float, is_nesterov: bool
) -> float:
    """The loop of torch.optim.SGD's documentation, one element, in float32."""
    p = np.float32(value)
    mu, rate = np.float32(momentum), np.float32(lr)
    b = None
    for gradient in gradients:
        g = np.float32(gradient)
        if momentum != 0.0:
            b = g if b is None else mu * b + g
            g = g + mu * b if is_nesterov else b
        p = p - rate * g
    return float(p)


def run(optimizer: SGD, value: float, gradients: list[float]) -> float:
    values = np.array([value], np.float32)
    buffers = optimizer.make_buffers(values)
    for gradient in gradients:
        optimizer.step(values, np.array([gradient], np.float32), buffers)
    return float(values[0])


@pytest.mark.parametrize(
    "optimizer",
    [SGD(0.5), SGD(0.1, momentum=0.9), SGD(0.1, momentum=0.9, nesterov=True), nesterov()],
    ids=["plain", "momentum", "nesterov", "diloco"],
)
def test_a_run_of_steps_has_the_bits_of_the_formula(optimizer: SGD) -> None:
    gradients = [1.0, -0.3, 0.7, 1e-3]

    expected = torch_sgd(2.0, gradients, optimizer.lr, optimizer.momentum, optimizer.nesterov)
    assert run(optimizer, 2.0, gradients) == expected


def test_nesterov_by_hand() -> None:
    # buffer 2, step along 2 + 0.5 * 2 = 3; buffer 0.5 * 2 + 4 = 5, step along 4 + 2.5 = 6.5
    assert run(SGD(1.0, momentum=0.5, nesterov=True), 10.0, [2.0, 4.0]) == 10.0 - 3.0 - 6.5


def test_momentum_by_hand() -> None:
    # buffer 2, then 0.5 * 2 + 4 = 5
    assert run(SGD(1.0, momentum=0.5), 10.0, [2.0, 4.0]) == 10.0 - 2.0 - 5.0


def whole_array_nesterov(
    values: NDArray[np.floating], gradient: NDArray[np.floating], buffer: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    mu, rate = np.float32(0.9), np.float32(0.7)
    buffer = mu * buffer + gradient
    return values - rate * (gradient + mu * buffer), buffer


@pytest.mark.parametrize("count", [0, 1, BLOCK_COUNT - 1, BLOCK_COUNT, 2 * BLOCK_COUNT + 1])
def test_blocks_leave_no_element_out_and_read_the_gradient_only(count: int) -> None:
    rng = np.random.default_rng(count)
    values, gradient, buffer = (rng.standard_normal(count, np.float32) for _ in range(3))
    kept = gradient.copy()
    expected_values, expected_buffer = whole_array_nesterov(values, gradient, buffer)

    nesterov().step(values, gradient, {"momentum": buffer})

    assert values.tobytes() == expected_values.tobytes()
    assert buffer.tobytes() == expected_buffer.tobytes()
    assert gradient.tobytes() == kept.tobytes()


def test_float64_stays_float64() -> None:
    values = np.array([1.0])

    SGD(0.1).step(values, np.array([1e-12]), {})

    assert values[0] == 1.0 - 0.1 * 1e-12


def test_no_momentum_needs_no_buffer() -> None:
    assert SGD(0.1).make_buffers(np.ones(3, np.float32)) == {}


@pytest.mark.parametrize(
    ("lr", "momentum", "is_nesterov"),
    [(-0.1, 0.0, False), (float("nan"), 0.0, False), (0.1, 1.0, False), (0.1, 0.0, True)],
)
def test_impossible_settings_are_refused(lr: float, momentum: float, is_nesterov: bool) -> None:
    with pytest.raises(ValueError, match=r"lr|momentum"):
        SGD(lr, momentum, is_nesterov)


@pytest.mark.parametrize(
    ("ours", "options"),
    [
        (SGD(0.3), {"lr": 0.3}),
        (SGD(0.1, momentum=0.9), {"lr": 0.1, "momentum": 0.9}),
        (nesterov(), {"lr": 0.7, "momentum": 0.9, "nesterov": True}),
    ],
    ids=["plain", "momentum", "nesterov"],
)
def test_sgd_is_that_of_torch(ours: SGD, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1000, np.float32)
    weights = torch.nn.Parameter(torch.from_numpy(values.copy()))
    theirs = torch.optim.SGD([weights], **options)
    buffers = ours.make_buffers(values)

    for _ in range(20):
        gradient = rng.standard_normal(1000, np.float32)
        ours.step(values, gradient, buffers)
        weights.grad = torch.from_numpy(gradient)
        theirs.step()

    # torch may fuse a multiplication with an addition: one rounding less
    np.testing.assert_allclose(values, weights.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_adamw_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1000)
    weights = torch.nn.Parameter(torch.from_numpy(values.copy()))
    options: dict[str, Any] = {"lr": 0.05, "betas": (0.9, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    theirs = torch.optim.AdamW([weights], **options)
    ours = AdamW(**options)
    buffers = ours.make_buffers(values)

    for number in range(1, 31):
        gradient = rng.standard_normal(1000)
        ours.step(values, gradient, buffers, number)
        weights.grad = torch.from_numpy(gradient)
        theirs.step()

    np.testing.assert_allclose(values, weights.detach().numpy(), rtol=1e-11)


def test_adamw_by_hand() -> None:
    # both moments are the gradient's after one step, whatever the betas: 1 * 2 / (2 + 2) = 0.5,
    # and decay takes a tenth of 10 off before
    values = np.array([10.0])
    optimizer = AdamW(1.0, betas=(0.5, 0.5), eps=2.0, weight_decay=0.1)

    optimizer.step(values, np.array([2.0]), optimizer.make_buffers(values), 1)

    assert values[0] == 10.0 - 1.0 - 0.5


@pytest.mark.parametrize("count", [0, 1, BLOCK_COUNT - 1, BLOCK_COUNT, 2 * BLOCK_COUNT + 1])
def test_adamw_leaves_no_element_out(count: int) -> None:
    optimizer = AdamW(0.1)
    values = np.ones(count, np.float32)
    one = np.ones(1, np.float32)
    buffers, buffer = optimizer.make_buffers(values), optimizer.make_buffers(one)

    optimizer.step(values, np.full(count, 0.5, np.float32), buffers)
    optimizer.step(one, np.full(1, 0.5, np.float32), buffer)

    assert (values == one[0]).all()
    assert one[0] < 1.0


def test_a_clipped_momentum_by_hand() -> None:
    # buffer min(2, 1.5) = 1.5, then max(0.5 * 1.5 - 9, -1.5) = -1.5
    optimizer = SGD(1.0, momentum=0.5, momentum_clip=1.5)

    assert run(optimizer, 10.0, [2.0, -9.0]) == 10.0 - 1.5 + 1.5
    assert not optimizer.is_linear


@pytest.mark.parametrize("optimizer", [SGD(0.5), nesterov(), SGD(1.0, 0.9, True, 2.0), AdamW(0.1)])
def test_an_optimizer_is_made_again_from_its_state(optimizer: OuterOptimizer) -> None:
    assert make_optimizer(json.loads(json.dumps(optimizer.state_dict()))) == optimizer


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="'lion'"):
        make_optimizer({"kind": "lion", "lr": 1.0})


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"lr": 1.0, "betas": (0.9, 1.0)}, {"lr": 1.0, "eps": 0.0}]
)
def test_impossible_settings_of_adamw_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"lr|betas|eps"):
        AdamW(**options)


@pytest.mark.parametrize("count", [0, 1, 3, FOLD_COUNT - 1, FOLD_COUNT, 2 * FOLD_COUNT + 1])
def test_the_norm_leaves_no_element_out(count: int) -> None:
    values = np.full(count, 3.0, np.float32)

    assert squared_norm(values) == 9.0 * count
    assert norm(values) == pytest.approx(3.0 * np.sqrt(count))


def test_the_norm_adds_halves_in_float64() -> None:
    # 2**-30 squared is lost beside 1 in float32, and kept in float64
    assert squared_norm(np.array([1.0, 2.0**-20], np.float32)) == 1.0 + 2.0**-40


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 10, 1001])
def test_a_power_is_a_product(exponent: int) -> None:
    assert power(2.0, exponent) == 2.0**exponent
    assert power(0.999, exponent) == pytest.approx(0.999**exponent, rel=1e-12)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (
            SGD(np.float64(0.5), np.float32(0.75), np.bool_(True), np.float64(2.0)),  # type: ignore[arg-type]
            SGD(0.5, 0.75, True, 2.0),
        ),
        (
            AdamW(np.float64(0.5), np.array([0.5, 0.75]), np.float32(0.25), 0),  # type: ignore[arg-type]
            AdamW(0.5, (0.5, 0.75), 0.25, 0.0),
        ),
        (nesterov(1, 0.5), nesterov(1.0, 0.5)),
    ],
)
def test_settings_in_numpy_or_whole_numbers_are_kept_as_plain_ones(
    given: SGD | AdamW, plain: SGD | AdamW
) -> None:
    assert given == plain
    kept, wanted = given.state_dict(), plain.state_dict()
    assert {name: type(value) for name, value in kept.items()} == {
        name: type(value) for name, value in wanted.items()
    }
    assert json.loads(json.dumps(kept)) == wanted
    assert make_optimizer(kept) == plain
