import math

import numpy as np
import pytest

from ringhaul.cli.demo.model import BYTE_COUNT, ByteModel, Shape

SMALL = Shape(context=3, embedding=2, hidden=5)


def random_bytes(count: int, high: int = BYTE_COUNT) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, high, count, np.uint8)


@pytest.mark.parametrize("name", list(SMALL.layers()))
def test_gradients_are_the_finite_differences(name: str) -> None:
    model = ByteModel(seed=3, shape=SMALL, dtype=np.float64)
    # Few different bytes, so that one embedding gets gradients from many places.
    rows = random_bytes(24 * 4, high=6).reshape(24, 4)
    gradient = model.loss_and_gradients(rows)[1][name].copy()
    values = model.params[name]
    step = 1e-6
    numeric = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        kept = values[index]
        values[index] = kept + step
        above = model.loss_and_gradients(rows)[0]
        values[index] = kept - step
        below = model.loss_and_gradients(rows)[0]
        values[index] = kept
        numeric[index] = (above - below) / (2 * step)

    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)
    assert np.abs(gradient).max() > 1e-3


def test_a_model_that_knows_nothing_needs_eight_bits() -> None:
    model = ByteModel(seed=0, shape=SMALL)
    model.params["output"][:] = 0.0

    assert model.bits_per_byte(random_bytes(5000)) == pytest.approx(8.0, abs=1e-6)


def test_bits_per_byte_is_the_mean_loss_over_all_whole_contexts() -> None:
    model = ByteModel(seed=0, shape=SMALL, dtype=np.float64)
    data = random_bytes(2000)
    rows = np.lib.stride_tricks.sliding_window_view(data, SMALL.context + 1)

    loss, _ = model.loss_and_gradients(rows)

    assert model.bits_per_byte(data) == pytest.approx(loss / math.log(2), rel=1e-12)


def test_huge_logits_do_not_overflow() -> None:
    model = ByteModel(seed=0, shape=SMALL)
    model.params["output_bias"][7] = 1e4

    assert model.bits_per_byte(np.full(10, 7, np.uint8)) == 0.0
    assert math.isfinite(model.bits_per_byte(random_bytes(100)))


def test_a_pattern_is_learned() -> None:
    model = ByteModel(seed=0, shape=SMALL)
    data = np.tile(np.frombuffer(b"ring", np.uint8), 100)
    rng = np.random.default_rng(0)
    before = model.bits_per_byte(data)

    for _ in range(200):
        model.train_step(data, rng, batch=32, lr=0.02)

    assert before > 7.0
    assert model.bits_per_byte(data) < 0.1


def test_adam_by_hand() -> None:
    # The first step is along the gradient's sign: 0.1 g / (sqrt(0.01 g^2) + 1e-8), times lr.
    model = ByteModel(seed=0, shape=SMALL, dtype=np.float64)
    data = random_bytes(500)
    rng_of_step, rng_of_check = np.random.default_rng(5), np.random.default_rng(5)
    before = model.params["output"].copy()
    windows = np.lib.stride_tricks.sliding_window_view(data, SMALL.context + 1)
    rows = windows[rng_of_check.integers(0, len(windows), 16)]
    gradient = model.loss_and_gradients(rows)[1]["output"].copy()

    model.train_step(data, rng_of_step, batch=16, lr=0.01)

    expected = before - 0.01 * 0.1 * gradient / (0.1 * np.abs(gradient) + 1e-8)
    np.testing.assert_allclose(model.params["output"], expected, rtol=1e-12)


def test_the_same_seed_gives_the_same_bits() -> None:
    one, same, other = (ByteModel(seed=seed, shape=SMALL) for seed in (1, 1, 2))
    data = random_bytes(500)
    for model in (one, same, other):
        model.train_step(data, np.random.default_rng(9), batch=16, lr=0.01)

    assert all(one.params[name].tobytes() == same.params[name].tobytes() for name in one.params)
    assert one.params["hidden"].tobytes() != other.params["hidden"].tobytes()


def test_values_written_into_params_are_what_the_model_uses() -> None:
    model = ByteModel(seed=0, shape=SMALL)
    for array in model.params.values():
        np.copyto(array, 0.0)

    assert model.bits_per_byte(random_bytes(100)) == pytest.approx(8.0)
    assert {array.dtype for array in model.params.values()} == {np.dtype(np.float32)}


def test_a_byte_that_is_not_in_the_batch_has_no_gradient() -> None:
    model = ByteModel(seed=0, shape=SMALL)
    model.loss_and_gradients(np.full((2, 4), 5, np.uint8))

    _, gradients = model.loss_and_gradients(np.full((2, 4), 6, np.uint8))

    assert not gradients["embedding"][5].any()
    assert gradients["embedding"][6].any()
