"""A byte-level language model in plain NumPy: one hidden layer, written out by hand.

It predicts a byte from the few before it: their embeddings side by side, a hidden layer of
rectified units, a softmax over the 256 bytes; Adam makes the inner steps. Knows nothing of
rings: its parameters are a dict of arrays that whoever trains it may read and write.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Bytes = NDArray[np.uint8]

BYTE_COUNT = 256
#: Positions predicted at a time when no gradient is needed.
EVALUATION_BATCH_COUNT = 1024
#: Elements Adam works on at a time, so that its operands stay in the cache.
ADAM_BLOCK_COUNT = 32 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the model; the defaults learn visibly in seconds on one core."""

    context: int = 8
    embedding: int = 16
    hidden: int = 384

    def layers(self) -> dict[str, tuple[int, ...]]:
        """Parameters by name and shape, in the order of the flat array."""
        return {
            "embedding": (BYTE_COUNT, self.embedding),
            "hidden": (self.context * self.embedding, self.hidden),
            "hidden_bias": (self.hidden,),
            "output": (self.hidden, BYTE_COUNT),
            "output_bias": (BYTE_COUNT,),
        }


@dataclass(frozen=True, slots=True)
class _Activations:
    """What the forward pass keeps for the backward pass, one row a position."""

    inputs: Floats
    hidden: Floats
    logits: Floats


class ByteModel:
    """The model and its Adam.

    Attributes:
        params: the parameters by name, float32; views of one flat array, so write into them
            and do not replace them.
    """

    def __init__(
        self, seed: int, shape: Shape | None = None, dtype: type[np.floating] = np.float32
    ) -> None:
        """Random parameters; `seed` decides them. `dtype` is float64 in gradient checks."""
        self.shape = Shape() if shape is None else shape
        layers = self.shape.layers()
        total_count = sum(math.prod(size) for size in layers.values())
        self._flat: Floats = np.zeros(total_count, dtype)
        self._flat_gradient = np.zeros_like(self._flat)
        self.params = _split(self._flat, layers)
        self._gradients = _split(self._flat_gradient, layers)
        self._adam = _Adam(self._flat)

        rng = np.random.default_rng(seed)
        fan_in = self.shape.context * self.shape.embedding
        self.params["embedding"][:] = rng.standard_normal(layers["embedding"])
        self.params["hidden"][:] = rng.standard_normal(layers["hidden"]) * math.sqrt(2 / fan_in)
        self.params["output"][:] = rng.standard_normal(layers["output"]) * math.sqrt(
            0.25 / self.shape.hidden
        )

    def train_step(self, data: Bytes, rng: np.random.Generator, batch: int, lr: float) -> float:
        """One step of Adam on `batch` random positions of `data`; returns bits per byte."""
        windows = sliding_window_view(data, self.shape.context + 1)
        rows = windows[rng.integers(0, len(windows), batch)]
        loss, _ = self.loss_and_gradients(rows)
        self._adam.step(self._flat, self._flat_gradient, lr)
        return loss / math.log(2)

    def loss_and_gradients(self, rows: Bytes) -> tuple[float, dict[str, Floats]]:
        """Mean cross-entropy in nats, and its derivative by every parameter.

        Args:
            rows: shape (batch, context + 1): each the context and, last, the byte to predict.

        Returns:
            The loss, and arrays that the next call overwrites.
        """
        context, targets = rows[:, :-1], rows[:, -1]
        batch = len(rows)
        kept = self._forward(context)
        loss = float(np.mean(_softmax(kept.logits, targets)))
        by_logits = kept.logits
        by_logits[np.arange(batch), targets] -= 1.0
        by_logits /= batch

        np.matmul(kept.hidden.T, by_logits, out=self._gradients["output"])
        np.sum(by_logits, axis=0, out=self._gradients["output_bias"])
        by_hidden = by_logits @ self.params["output"].T
        by_hidden *= kept.hidden > 0.0
        np.matmul(kept.inputs.T, by_hidden, out=self._gradients["hidden"])
        np.sum(by_hidden, axis=0, out=self._gradients["hidden_bias"])
        by_inputs = by_hidden @ self.params["hidden"].T
        _add_rows_by_byte(
            by_inputs.reshape(-1, self.shape.embedding), context, self._gradients["embedding"]
        )
        return loss, self._gradients

    def bits_per_byte(self, data: Bytes) -> float:
        """Mean cost of every byte of `data` that has a whole context before it."""
        windows = sliding_window_view(data, self.shape.context + 1)
        nats = 0.0
        for start in range(0, len(windows), EVALUATION_BATCH_COUNT):
            rows = windows[start : start + EVALUATION_BATCH_COUNT]
            logits = self._forward(rows[:, :-1]).logits
            nats += float(np.sum(_softmax(logits, rows[:, -1]), dtype=np.float64))
        return nats / len(windows) / math.log(2)

    def _forward(self, context: Bytes) -> _Activations:
        """Logits of the byte after each row of `context`."""
        inputs = self.params["embedding"][context].reshape(len(context), -1)
        hidden = inputs @ self.params["hidden"]
        hidden += self.params["hidden_bias"]
        np.maximum(hidden, 0.0, out=hidden)
        logits = hidden @ self.params["output"]
        logits += self.params["output_bias"]
        return _Activations(inputs, hidden, logits)


class _Adam:
    """Adam (arXiv 1412.6980) on one flat array, block by block."""

    def __init__(self, values: Floats, beta1: float = 0.9, beta2: float = 0.99) -> None:
        self._beta1, self._beta2, self._epsilon = beta1, beta2, 1e-8
        self._mean = np.zeros_like(values)
        self._square = np.zeros_like(values)
        self._scratch = np.empty(ADAM_BLOCK_COUNT, values.dtype)
        self._step = 0

    def step(self, values: Floats, gradient: Floats, lr: float) -> None:
        """Change `values` in place."""
        self._step += 1
        square_correction = 1.0 - self._beta2**self._step
        rate = lr * math.sqrt(square_correction) / (1.0 - self._beta1**self._step)
        for start in range(0, values.size, ADAM_BLOCK_COUNT):
            block = slice(start, min(start + ADAM_BLOCK_COUNT, values.size))
            mean, square, g = self._mean[block], self._square[block], gradient[block]
            scratch = self._scratch[: block.stop - block.start]
            mean *= self._beta1
            mean += np.multiply(g, 1.0 - self._beta1, out=scratch)
            square *= self._beta2
            np.multiply(g, g, out=scratch)
            scratch *= 1.0 - self._beta2
            square += scratch
            np.sqrt(square, out=scratch)
            scratch += self._epsilon
            np.divide(mean, scratch, out=scratch)
            scratch *= rate
            values[block] -= scratch


def _split(flat: Floats, layers: dict[str, tuple[int, ...]]) -> dict[str, Floats]:
    """Views of consecutive parts of `flat`."""
    views: dict[str, Floats] = {}
    start = 0
    for name, size in layers.items():
        stop = start + math.prod(size)
        views[name] = flat[start:stop].reshape(size)
        start = stop
    return views


def _softmax(logits: Floats, targets: Bytes) -> Floats:
    """Turn each row of `logits` into probabilities, in place.

    Returns:
        What each row's target costs, in nats, taken from the logits and so without the
        logarithm of a tiny probability.
    """
    logits -= logits.max(axis=1, keepdims=True)
    target_logits = logits[np.arange(len(targets)), targets]
    np.exp(logits, out=logits)
    sums = logits.sum(axis=1, keepdims=True)
    logits /= sums
    return np.asarray(np.log(sums[:, 0]) - target_logits)


def _add_rows_by_byte(rows: Floats, keys: Bytes, out: Floats) -> None:
    """out[b] = sum of the rows whose key is b. Sorting beats `np.add.at` ten times over."""
    flat_keys = keys.ravel()
    order = np.argsort(flat_keys, kind="stable")
    ordered = flat_keys[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    out[:] = 0.0
    out[ordered[starts]] = np.add.reduceat(rows[order], starts, axis=0)
