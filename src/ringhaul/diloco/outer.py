"""Outer optimizers: what a step does with the averaged pseudo-gradient.

Every member runs the same step on the same bytes, so only element-wise IEEE operations are
used (subtract, add, multiply, each rounded once): any CPU gets the same bits. Nothing here
knows of peers or rounds.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

#: float32 or float64.
FloatArray = NDArray[np.floating]

#: Elements worked on at a time, so that all operands of a block stay in the cache.
BLOCK_COUNT = 64 * 1024


class OuterOptimizer(Protocol):
    """Steps flat parameters along a flat gradient; its buffers belong to the shared state."""

    def make_buffers(self, values: FloatArray) -> dict[str, FloatArray]:
        """New buffers by name, each of the shape and dtype of `values`, as before any step."""
        ...

    def step(
        self, values: FloatArray, gradient: FloatArray, buffers: dict[str, FloatArray]
    ) -> None:
        """Change `values` and `buffers` in place; the same inputs give the same bits anywhere."""
        ...


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent as `torch.optim.SGD` defines it, with dampening 0.

    With momentum `mu`: `buffer = mu * buffer + gradient`, then the step is along `buffer`, or,
    with `nesterov`, along `gradient + mu * buffer`. PyTorch sets the first buffer to the
    gradient; a buffer of zeros gives the same, so a newcomer needs no case of its own.

    Raises:
        ValueError: a negative `lr`, a momentum outside [0, 1), Nesterov without momentum.
    """

    lr: float
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Refuse what PyTorch refuses, and a momentum that never forgets."""
        if not self.lr >= 0.0:
            raise ValueError(f"lr is {self.lr}; it has to be 0 or more")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum is {self.momentum}; it has to be in [0, 1)")
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("Nesterov needs a momentum")

    def make_buffers(self, values: FloatArray) -> dict[str, FloatArray]:
        """One buffer of zeros, `momentum`; none without momentum."""
        return {} if self.momentum == 0.0 else {"momentum": np.zeros_like(values)}

    def step(
        self, values: FloatArray, gradient: FloatArray, buffers: dict[str, FloatArray]
    ) -> None:
        """Step `values` along `gradient`, in place.

        Args:
            values: shape (n,), float32 or float64, writable.
            gradient: shape and dtype of `values`; only read. It may not overlap `values`.
            buffers: what `make_buffers` returned, changed in place.
        """
        scratch = np.empty(min(values.size, BLOCK_COUNT), values.dtype)
        buffer = buffers.get("momentum")
        for start in range(0, values.size, BLOCK_COUNT):
            block = slice(start, min(start + BLOCK_COUNT, values.size))
            direction = scratch[: block.stop - block.start]
            if buffer is None:
                np.multiply(gradient[block], self.lr, out=direction)
            else:
                self._momentum_direction(gradient[block], buffer[block], direction)
                np.multiply(direction, self.lr, out=direction)
            np.subtract(values[block], direction, out=values[block])

    def _momentum_direction(
        self, gradient: FloatArray, buffer: FloatArray, direction: FloatArray
    ) -> None:
        """Update one block of `buffer`; write where to step into `direction`."""
        np.multiply(buffer, self.momentum, out=buffer)
        np.add(buffer, gradient, out=buffer)
        if self.nesterov:
            np.multiply(buffer, self.momentum, out=direction)
            np.add(gradient, direction, out=direction)
        else:
            np.copyto(direction, buffer)


def nesterov(lr: float = 0.7, momentum: float = 0.9) -> SGD:
    """The outer optimizer of DiLoCo (arXiv 2311.08105), with its learning rate and momentum."""
    return SGD(lr=lr, momentum=momentum, nesterov=True)
