import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul.diloco.outer import BLOCK_COUNT, SGD, nesterov


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
