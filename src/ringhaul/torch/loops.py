"""The three training loops for a module and its inner optimizer.

Decides how an inner step is noticed and what is in a checkpoint; everything else is
`ringhaul.diloco`'s.
"""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, SupportsFloat

from torch.optim import Optimizer

import torch
from ringhaul import diloco
from ringhaul.diloco.loop import OuterLoop
from ringhaul.diloco.members import Collectives
from ringhaul.diloco.outer import OuterOptimizer
from ringhaul.diloco.results import RoundInfo
from ringhaul.quant import Codec
from ringhaul.torch.store import ModuleStore
from torch import nn


class _Hook(Protocol):
    """What registering a hook returns."""

    def remove(self) -> None: ...


class TorchLoop(OuterLoop):
    """What the three have in common: the hook, the weight, checkpoints.

    Attributes:
        inner: the inner optimizer, whose steps a `with` block counts and whose state is in
            checkpoints. May be replaced by another one for the same parameters.
        weight: of the inner steps that are counted by the hook; set it to the tokens of a
            batch before `optimizer.step()`. 1.0 at first.
        last: the newest `RoundInfo`; None before the first.
        on_round: called with each `RoundInfo`, after the parameters are set. Collectives of
            the program itself may be made there.
    """

    weight: SupportsFloat = 1.0
    last: RoundInfo | None = None
    on_round: Callable[[RoundInfo], None] | None = None
    inner: Optimizer
    _hook: _Hook | None = None
    #: Blocks that are open.
    _depth: int = 0

    def step(self, weight: SupportsFloat | None = None) -> RoundInfo | None:
        """Count one inner step; as `ringhaul.diloco.DiLoCo.step`.

        Not needed in a `with` block: there `optimizer.step()` is enough.

        Args:
            weight: of this inner step; default: the attribute `weight`.
        """
        info = super().step(self.weight if weight is None else weight)
        if info is not None:
            self.last = info
            if self.on_round is not None:
                self.on_round(info)
        return info

    def __enter__(self) -> Self:
        """Count every `step` of the inner optimizer, until the end of the block.

        Of the optimizer that is `inner` now: after making another one, assign it to `inner` and
        enter again, also within a block: from then on that one is counted, and only that.
        """
        if self._hook is not None:
            self._hook.remove()
        self._hook = self.inner.register_step_post_hook(self._count)
        self._depth += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Count no more, at the end of the outermost block. The communicator stays open."""
        self._depth -= 1
        if self._depth == 0 and self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _count(self, *_: object) -> None:
        self.step()

    def state_dict(self) -> dict[str, Any]:
        """A checkpoint for `resume=`, of tensors and plain values: `torch.save` it.

        It has this peer's inner optimizer too. `torch.load(path, weights_only=True)` reads it.
        """
        state = super().state_dict()
        arrays = {name: torch.from_numpy(array) for name, array in state["arrays"].items()}
        return {**state, "arrays": arrays, "inner": self.inner.state_dict()}


def _prepare_inner(inner: Optimizer, resume: Mapping[str, Any] | None) -> Optimizer:
    """The inner optimizer, with its state from a checkpoint."""
    if not hasattr(inner, "param_groups"):
        kind = f"{type(inner).__module__}.{type(inner).__qualname__}"
        raise TypeError(f"optimizer is the inner one, a torch.optim.Optimizer, not a {kind}")
    if resume is not None and "inner" in resume:
        inner.load_state_dict(resume["inner"])
    return inner


def _on_host(resume: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The arrays of a checkpoint in NumPy, wherever `torch.load(map_location=)` put them."""
    if not isinstance(resume, Mapping) or not isinstance(resume.get("arrays"), Mapping):
        return resume  # what is wrong with it is said where it is loaded
    arrays = {
        name: array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array
        for name, array in resume["arrays"].items()
    }
    return {**resume, "arrays": arrays}


class DiLoCo(TorchLoop, diloco.DiLoCo):
    """`ringhaul.diloco.DiLoCo` for a module and any inner optimizer.

        with ringhaul.connect(address) as comm, DiLoCo(model, optimizer, comm, 50):
            for batch in batches:
                loss(model, batch).backward()
                optimizer.step()        # every 50th averages over all members
                optimizer.zero_grad()

    The module may be on the CPU, on CUDA devices or on both, with parameters of any floating
    dtypes; outer parameters are float32 on the host (float64 if all are). Tied parameters take
    part once. Floating buffers (running means) are averaged. Nothing of `torch.distributed`
    and no environment variable of it is used, so this works under `torchrun`, too.

    Args:
        model: all members have the same; its parameters are set to the run's at once.
        optimizer: the inner one; its state stays this peer's own.
        comm: one communicator carries one training loop.
        inner_steps: as for `ringhaul.diloco.DiLoCo`, and all that follows.
        outer_optimizer: `ringhaul.diloco.nesterov()` by default.
        codec: of the pseudo-gradients.
        timeout_s: for each collective.
        max_seconds_per_round: this peer's limit for the inner steps of a round.
        resume: a checkpoint; the inner optimizer gets its state from it as well.
        average_buffers: take floating buffers along.

    Raises:
        ValueError, TypeError: an argument is not as described.
        RinghaulError: as `Communicator.sync_state` raises it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        comm: Collectives,
        inner_steps: int,
        *,
        outer_optimizer: OuterOptimizer | None = None,
        codec: str | Codec = "raw",
        timeout_s: float | None = None,
        max_seconds_per_round: float | None = None,
        resume: Mapping[str, Any] | None = None,
        average_buffers: bool = True,
    ) -> None:
        store = ModuleStore(model, buffers=average_buffers)
        self.inner = _prepare_inner(optimizer, resume)
        super().__init__(
            comm,
            store,
            inner_steps,
            optimizer=outer_optimizer,
            codec=codec,
            timeout_s=timeout_s,
            max_seconds_per_round=max_seconds_per_round,
            resume=_on_host(resume),
        )


class DelayedDiLoCo(TorchLoop, diloco.DelayedDiLoCo):
    """`ringhaul.diloco.DelayedDiLoCo` for a module and any inner optimizer.

    Args:
        model: as for `DiLoCo`, and all that is not below.
        optimizer: as there.
        comm: as there.
        inner_steps: as there.
        eager: as for `ringhaul.diloco.DelayedDiLoCo`.
        staleness_penalty: as there.
        outer_optimizer: `ringhaul.diloco.nesterov(0.4, 0.5)` by default.
        codec: as there.
        timeout_s: as there.
        max_seconds_per_round: as there.
        resume: as there.
        average_buffers: as there.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        comm: Collectives,
        inner_steps: int,
        *,
        eager: bool = False,
        staleness_penalty: bool = False,
        outer_optimizer: OuterOptimizer | None = None,
        codec: str | Codec = "raw",
        timeout_s: float | None = None,
        max_seconds_per_round: float | None = None,
        resume: Mapping[str, Any] | None = None,
        average_buffers: bool = True,
    ) -> None:
        store = ModuleStore(model, buffers=average_buffers)
        self.inner = _prepare_inner(optimizer, resume)
        super().__init__(
            comm,
            store,
            inner_steps,
            optimizer=outer_optimizer,
            eager=eager,
            staleness_penalty=staleness_penalty,
            codec=codec,
            timeout_s=timeout_s,
            max_seconds_per_round=max_seconds_per_round,
            resume=_on_host(resume),
        )


class StreamingDiLoCo(TorchLoop, diloco.StreamingDiLoCo):
    """`ringhaul.diloco.StreamingDiLoCo` for a module and any inner optimizer.

    Args:
        model: as for `DiLoCo`, and all that is not below.
        optimizer: as there.
        comm: as there.
        inner_steps: as there.
        fragments: as for `ringhaul.diloco.StreamingDiLoCo`; layers are found by the first
            number in a parameter's name.
        overlap: as there.
        mixing: as there.
        outer_optimizer: as for `DiLoCo`.
        codec: as there.
        timeout_s: as there.
        max_seconds_per_round: as there.
        resume: as there.
        average_buffers: as there.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        comm: Collectives,
        inner_steps: int,
        *,
        fragments: int = 4,
        overlap: int = 0,
        mixing: float = 0.5,
        outer_optimizer: OuterOptimizer | None = None,
        codec: str | Codec = "raw",
        timeout_s: float | None = None,
        max_seconds_per_round: float | None = None,
        resume: Mapping[str, Any] | None = None,
        average_buffers: bool = True,
    ) -> None:
        store = ModuleStore(model, buffers=average_buffers)
        self.inner = _prepare_inner(optimizer, resume)
        super().__init__(
            comm,
            store,
            inner_steps,
            fragments=fragments,
            overlap=overlap,
            mixing=mixing,
            optimizer=outer_optimizer,
            codec=codec,
            timeout_s=timeout_s,
            max_seconds_per_round=max_seconds_per_round,
            resume=_on_host(resume),
        )
