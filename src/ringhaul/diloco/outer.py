"""Outer optimizers: what a step does with the averaged pseudo-gradient.

Every member runs the same step on the same bytes, so only element-wise IEEE operations are
used (add, subtract, multiply, divide, square root, minimum, maximum, each rounded once; NumPy
never fuses a multiplication with an addition): any CPU gets the same bits. Nothing here knows
of peers or rounds. An optimizer is its settings; what it remembers is in buffers that belong to
the shared state.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ringhaul.diloco.exact import power

#: float32 or float64.
FloatArray = NDArray[np.floating]

#: Elements worked on at a time, so that all operands of a block stay in the cache.
BLOCK_COUNT = 64 * 1024


class OuterOptimizer(Protocol):
    """Steps flat parameters along a flat gradient; its buffers belong to the shared state."""

    @property
    def is_linear(self) -> bool:
        """Is the step for the sum of two gradients the sum of the steps for each?"""
        ...

    def make_buffers(self, values: FloatArray) -> dict[str, FloatArray]:
        """New buffers by name, each of the shape and dtype of `values`, as before any step."""
        ...

    def step(
        self,
        values: FloatArray,
        gradient: FloatArray,
        buffers: Mapping[str, FloatArray],
        number: int = 1,
    ) -> None:
        """Change `values` and `buffers` in place; the same inputs give the same bits anywhere.

        `number` is 1 in the first step of these values, 2 in the next.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """The settings, as plain values; `make_optimizer` makes an equal optimizer of them."""
        ...


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent as `torch.optim.SGD` defines it, with dampening 0.

    With momentum `mu`: `buffer = mu * buffer + gradient`, then the step is along `buffer`, or,
    with `nesterov`, along `gradient + mu * buffer`. PyTorch sets the first buffer to the
    gradient; a buffer of zeros gives the same, so a newcomer needs no case of its own.

    Args:
        lr: the learning rate, 0 or more.
        momentum: in [0, 1); 0 needs no buffer.
        nesterov: step along the gradient and the new momentum; needs a momentum.
        momentum_clip: if given, every element of the buffer is kept within plus and minus
            this, after it was updated and before the step: the outer momentum clipping of CO2
            (arXiv 2401.16265), element by element as its published code means it.

    Raises:
        ValueError: a negative `lr`, a momentum outside [0, 1), Nesterov or a clip without
            momentum.
    """

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    momentum_clip: float | None = None

    kind: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        """Refuse what PyTorch refuses, and a momentum that never forgets."""
        _check_rate(self.lr)
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum is {self.momentum}; it has to be in [0, 1)")
        if self.momentum == 0.0 and (self.nesterov or self.momentum_clip is not None):
            raise ValueError("Nesterov and momentum_clip need a momentum")
        if self.momentum_clip is not None and not self.momentum_clip > 0.0:
            raise ValueError(f"momentum_clip is {self.momentum_clip}; it has to be above 0")
        clip = None if self.momentum_clip is None else float(self.momentum_clip)
        _set_plain(self, lr=float(self.lr), momentum=float(self.momentum), momentum_clip=clip)
        _set_plain(self, nesterov=bool(self.nesterov))

    @property
    def is_linear(self) -> bool:
        """Unless the momentum is clipped."""
        return self.momentum_clip is None

    def make_buffers(self, values: FloatArray) -> dict[str, FloatArray]:
        """One buffer of zeros, `momentum`; none without momentum."""
        return {} if self.momentum == 0.0 else {"momentum": np.zeros_like(values)}

    def step(
        self,
        values: FloatArray,
        gradient: FloatArray,
        buffers: Mapping[str, FloatArray],
        number: int = 1,
    ) -> None:
        """Step `values` along `gradient`, in place.

        Args:
            values: shape (n,), float32 or float64, writable.
            gradient: shape and dtype of `values`; only read. It may not overlap `values`.
            buffers: what `make_buffers` returned, changed in place.
            number: not used.
        """
        scratch = np.empty(min(values.size, BLOCK_COUNT), values.dtype)
        buffer = buffers.get("momentum")
        for block in blocks(values.size):
            direction = scratch[: block.stop - block.start]
            if buffer is None:
                np.multiply(gradient[block], self.lr, out=direction)
            else:
                self._momentum_direction(gradient[block], buffer[block], direction)
                np.multiply(direction, self.lr, out=direction)
            np.subtract(values[block], direction, out=values[block])

    def state_dict(self) -> dict[str, Any]:
        """The settings, as plain values."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    def _momentum_direction(
        self, gradient: FloatArray, buffer: FloatArray, direction: FloatArray
    ) -> None:
        """Update one block of `buffer`; write where to step into `direction`."""
        np.multiply(buffer, self.momentum, out=buffer)
        np.add(buffer, gradient, out=buffer)
        if self.momentum_clip is not None:
            np.minimum(buffer, self.momentum_clip, out=buffer)
            np.maximum(buffer, -self.momentum_clip, out=buffer)
        if self.nesterov:
            np.multiply(buffer, self.momentum, out=direction)
            np.add(gradient, direction, out=direction)
        else:
            np.copyto(direction, buffer)


@dataclass(frozen=True, slots=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019) with the definition of `torch.optim.AdamW`.

    The moments are the buffers `mean` and `square`. Powers of the betas are taken by repeated
    multiplication, not by the C library, so that all members get the same bits; against
    PyTorch the last bits may differ.

    Args:
        lr: the learning rate, 0 or more.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment, above 0. Pseudo-gradients are small:
            DiLoCo's authors tuned 0.1 for Adam as outer optimizer.
        weight_decay: 0 or more, decoupled.

    Raises:
        ValueError: a setting is out of range.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 0.1
    weight_decay: float = 0.0

    kind: ClassVar[str] = "adamw"

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _check_rate(self.lr)
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; two numbers in [0, 1)")
        if not self.eps > 0.0:
            raise ValueError(f"eps is {self.eps}; it has to be above 0")
        if not self.weight_decay >= 0.0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it has to be 0 or more")
        mean, square = self.betas
        _set_plain(self, lr=float(self.lr), betas=(float(mean), float(square)))
        _set_plain(self, eps=float(self.eps), weight_decay=float(self.weight_decay))

    @property
    def is_linear(self) -> bool:
        """It divides by the size of past gradients."""
        return False

    def make_buffers(self, values: FloatArray) -> dict[str, FloatArray]:
        """Two buffers of zeros, `mean` and `square`."""
        return {"mean": np.zeros_like(values), "square": np.zeros_like(values)}

    def step(
        self,
        values: FloatArray,
        gradient: FloatArray,
        buffers: Mapping[str, FloatArray],
        number: int = 1,
    ) -> None:
        """Step `values` along `gradient`, in place; arguments as of `SGD.step`.

        Args:
            values: as there.
            gradient: as there.
            buffers: what `make_buffers` returned, changed in place.
            number: 1 in the first step of these values; the moments begin at zero, and this
                says how much of that is left in them.
        """
        beta_mean, beta_square = self.betas
        rate = self.lr / (1.0 - power(beta_mean, number))
        correction = 1.0 / (1.0 - power(beta_square, number))
        keep = 1.0 - self.lr * self.weight_decay
        scratch = np.empty(min(values.size, BLOCK_COUNT), values.dtype)
        denominators = np.empty_like(scratch)
        for block in blocks(values.size):
            part, mean, square = gradient[block], buffers["mean"][block], buffers["square"][block]
            move = scratch[: block.stop - block.start]
            denominator = denominators[: block.stop - block.start]
            np.multiply(mean, beta_mean, out=mean)
            np.multiply(part, 1.0 - beta_mean, out=move)
            np.add(mean, move, out=mean)
            np.multiply(square, beta_square, out=square)
            np.multiply(part, part, out=move)
            np.multiply(move, 1.0 - beta_square, out=move)
            np.add(square, move, out=square)
            np.multiply(square, correction, out=denominator)
            np.sqrt(denominator, out=denominator)
            np.add(denominator, self.eps, out=denominator)
            np.multiply(mean, rate, out=move)
            np.divide(move, denominator, out=move)
            np.multiply(values[block], keep, out=values[block])
            np.subtract(values[block], move, out=values[block])

    def state_dict(self) -> dict[str, Any]:
        """The settings, as plain values."""
        return {"kind": self.kind, **dataclasses.asdict(self), "betas": list(self.betas)}


def nesterov(lr: float = 0.7, momentum: float = 0.9) -> SGD:
    """The outer optimizer of DiLoCo (arXiv 2311.08105), with its learning rate and momentum."""
    return SGD(lr=lr, momentum=momentum, nesterov=True)


def optimizer_of(optimizer: OuterOptimizer | None, default: SGD) -> OuterOptimizer:
    """What a training loop was given as its outer optimizer.

    Raises:
        TypeError: it is none: a name, say, or an inner optimizer.
    """
    if optimizer is None:
        return default
    if not hasattr(optimizer, "make_buffers"):
        kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        raise TypeError(
            f"the outer optimizer is nesterov(), SGD(...) or AdamW(...) of ringhaul.diloco, or "
            f"one like them, not a {kind}"
        )
    return optimizer


def make_optimizer(state: Mapping[str, Any]) -> SGD | AdamW:
    """The optimizer whose `state_dict` this is.

    Raises:
        ValueError: the kind is not known, or a setting is out of range.
        TypeError: a setting is not known.
    """
    settings = dict(state)
    kind = settings.pop("kind", None)
    if kind == SGD.kind:
        return SGD(**settings)
    if kind == AdamW.kind:
        settings["betas"] = tuple(settings["betas"])
        return AdamW(**settings)
    raise ValueError(f'the kind of an outer optimizer is "sgd" or "adamw", not {kind!r}')


def blocks(count: int) -> list[slice]:
    """Cut `count` elements into parts of at most `BLOCK_COUNT`."""
    return [slice(start, min(start + BLOCK_COUNT, count)) for start in range(0, count, BLOCK_COUNT)]


def _check_rate(lr: float) -> None:
    if not lr >= 0.0:
        raise ValueError(f"lr is {lr}; it has to be 0 or more")


def _set_plain(optimizer: object, **settings: object) -> None:
    """Settings as plain values: NumPy's would go into checkpoints, and into the dtype of a step."""
    for name, value in settings.items():
        object.__setattr__(optimizer, name, value)
