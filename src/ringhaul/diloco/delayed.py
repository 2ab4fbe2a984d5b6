"""One-step-delayed DiLoCo: the average of one round travels while the next one is computed.

Decides the pipeline. At the end of round t, on every member:

1. wait for the average of round t-1 (as a rule it is here);
2. pseudo-gradient of round t := where the round began minus where it ended;
3. outer step along the average of round t-1;
4. let waiting peers in, if there are any: nothing is in flight now;
5. the next round begins at the new outer parameters; the pseudo-gradient of round t is posted.

A newcomer is synced in 4 and takes part in 5 with nothing in it, so it has the average of
round t at the end of its own first round, as all others, and the same bits from then on.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ringhaul.diloco.exact import norm
from ringhaul.diloco.gradients import subtract
from ringhaul.diloco.loop import OuterLoop, Params, Task
from ringhaul.diloco.members import Collectives
from ringhaul.diloco.outer import FloatArray, OuterOptimizer, nesterov, optimizer_of
from ringhaul.quant import Codec


class DelayedDiLoCo(OuterLoop):
    """`DiLoCo` with all communication behind the next round's inner steps.

    The outer step of a round uses the pseudo-gradients of the round before. As long as an
    average takes less time than a round, nobody waits for the network.

    The outer optimizer needs less learning rate and momentum than DiLoCo's: a gradient that comes
    a step late makes a loop with much momentum swing. In the linear model, where a round brings
    the parameters the share c of the way to where they would settle, Nesterov with 0.7 and 0.9
    diverges for c above 0.45; the default here, 0.4 and 0.5, is stable up to c = 1 and as fast.

    The eager variant (arXiv 2502.12996) starts a round with this peer's own newest
    pseudo-gradient already in: its share of the average, which the others get one round later.
    Here the shared outer parameters stay the same bits on all members; what is ahead of them is
    a second, local run of the outer optimizer on the own shares, which equals the paper's
    update because the optimizer is linear in the gradients.

    The staleness-gap penalty divides an average by `1 + moved / length`: how far the outer
    parameters have moved since its inner steps began, in units of its own length. The idea is
    CO2's (arXiv 2401.16265), the formula is that of this library, linear in the gap as in
    Gap-Aware SGD (arXiv 1909.10802). CO2's published code divides by a constant instead,
    `co2_gap_penalty`; with a linear optimizer that is a smaller `lr`, so it needs no option.
    CO2's outer momentum clipping is `SGD(momentum_clip=)`.

    If a member is lost while an average is under way, it is made among the survivors, each
    with its pseudo-gradient of that round. A checkpoint has no averages on their way.

    Memory: as `DiLoCo`; `eager` adds two, `staleness_penalty` one array like the parameters.

    Args:
        comm: as for `DiLoCo`, and all that follows.
        params: as there.
        inner_steps: as there.
        optimizer: the outer optimizer, linear (`SGD` without a clip) if `eager`;
            `nesterov(0.4, 0.5)` by default.
        eager: use this peer's own contribution a round before the others'. On all members.
        staleness_penalty: as above. On all members.
        codec: as there.
        timeout_s: as there.
        max_seconds_per_round: as there.
        resume: as there.
        clock: as there.

    Raises:
        ValueError, TypeError: an argument is not as described.
        RinghaulError: as `Communicator.sync_state` raises it.
    """

    def __init__(
        self,
        comm: Collectives,
        params: Params,
        inner_steps: int,
        *,
        optimizer: OuterOptimizer | None = None,
        eager: bool = False,
        staleness_penalty: bool = False,
        codec: str | Codec = "raw",
        timeout_s: float | None = None,
        max_seconds_per_round: float | None = None,
        resume: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        optimizer = optimizer_of(optimizer, nesterov(0.4, 0.5))
        if eager and not optimizer.is_linear:
            raise ValueError("eager needs an outer optimizer that is linear, as SGD")
        self.eager = eager
        self.staleness_penalty = staleness_penalty
        #: Where this peer's round began, and what the optimizer remembers of its own shares.
        self._start: FloatArray | None = None
        self._own_buffers: dict[str, FloatArray] = {}
        super().__init__(
            comm,
            params,
            inner_steps,
            optimizer=optimizer,
            codec=codec,
            timeout_s=timeout_s,
            max_seconds_per_round=max_seconds_per_round,
            resume=resume,
            clock=clock,
        )
        if eager:
            self._start = self._run.outer.copy()
            self._own_buffers = self.optimizer.make_buffers(self._start)

    def _tasks(self) -> list[Task]:
        return [
            lambda: self._wait(0),
            lambda: self._capture(0),
            lambda: self._apply(0),
            lambda: self._admit([0]),
            self._choose_start,
            self._load_all,
            lambda: self._post(0),
            self._end_slot,
        ]

    def _reference(self, part: slice) -> FloatArray:
        return self._run.outer[part] if self._start is None else self._start[part]

    def _step_along(self, fragment: int, gradient: FloatArray, length: float) -> None:
        if not self.staleness_penalty:
            super()._step_along(fragment, gradient, length)
            return
        if length > 0.0:
            divisor = 1.0 + float(self._run.moved[fragment]) / length
            np.divide(gradient, gradient.dtype.type(divisor), out=gradient)
        before = self._run.outer[self._layout.parts[fragment]].copy()
        super()._step_along(fragment, gradient, length)
        subtract(before, self._run.outer[self._layout.parts[fragment]], out=before)
        self._run.moved[fragment] = norm(before)

    def _choose_start(self) -> None:
        """If eager, a round begins at the outer parameters and a step along the own share."""
        if self._start is None:
            return
        np.copyto(self._start, self._run.outer)
        if self._slot.rejected:
            self._own_buffers = self.optimizer.make_buffers(self._start)
            return
        # the total weight of this round is not known yet: as in the one before
        total = self._slot.average.scale or self._captured[0].scale * self._comm.world_size
        share = np.divide(self._pseudo_gradient, self._start.dtype.type(total or 1.0))
        self._optimize(0, self._start, share, self._own_buffers)

    def _load(self, fragment: int) -> None:
        """Inner parameters := where this peer's round begins."""
        part = self._layout.parts[fragment]
        self._store.write(self._layout.names[fragment], self._reference(part))
