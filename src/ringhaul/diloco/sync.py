"""DiLoCo (arXiv 2311.08105): many local steps, then one all-reduce and one outer step.

Decides the order of the collectives of a round, and hides admission, state sync and retries
from the training loop. How the average is stepped along is `outer.py`'s; everything about
links and losses is the communicator's.

The order is a contract between old members and newcomers, who have to call the same
collectives at the same time:

    old member     ... inner steps, all_reduce, admit, sync_state, inner steps, all_reduce ...
    newcomer                         connect, DiLoCo: sync_state, inner steps, all_reduce ...

A newcomer's `connect` returns where the members' `admit` does, and a `DiLoCo` syncs as its
first act. Members know from `admit` whether anybody came (the same answer for all), and sync
only then. A program with collectives of its own keeps the order by placing them directly
after the constructor and directly after each step that returned a `RoundInfo`: there a
newcomer and an old member stand at the same point.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ringhaul.diloco.outer import FloatArray, OuterOptimizer, nesterov
from ringhaul.errors import CollectiveAborted
from ringhaul.quant import Codec
from ringhaul.state.shared import SharedState


class ReduceResult(Protocol):
    """What is read of a `ReduceInfo`."""

    @property
    def world_size(self) -> int: ...
    @property
    def contributors(self) -> tuple[str, ...]: ...
    @property
    def attempts(self) -> int: ...
    @property
    def duration_s(self) -> float: ...


class SyncResult(Protocol):
    """What is read of a `SyncInfo`."""

    @property
    def revision(self) -> int: ...


class AdmitResult(Protocol):
    """What is read of a `Membership`."""

    @property
    def admitted(self) -> bool: ...


class Collectives(Protocol):
    """The part of a communicator that DiLoCo uses."""

    def admit(self, timeout_s: float | None = None) -> AdmitResult: ...
    def all_reduce(
        self,
        array: FloatArray,
        op: str = "sum",
        *,
        out: FloatArray | None = None,
        codec: str | Codec = "raw",
        timeout_s: float | None = None,
    ) -> ReduceResult: ...
    def sync_state(
        self, state: SharedState, strategy: str = "popular", timeout_s: float | None = None
    ) -> SyncResult: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundInfo:
    """One committed round. All but the two durations are equal on all its members."""

    #: Rounds committed in this run so far, with this one.
    round: int
    #: Peers whose pseudo-gradients were averaged, in ring order; may name a peer lost since.
    contributors: tuple[str, ...]
    #: Their number, the divisor of the average.
    world_size: int
    #: Runs of the all-reduce: more than one if members were lost meanwhile.
    attempts: int
    #: Newcomers were let in at the end of the round, and have the state.
    admitted: bool
    #: Euclidean norm of the averaged pseudo-gradient.
    gradient_norm: float
    #: Seconds in the all-reduce, waiting for late members included.
    reduce_s: float
    #: Seconds in the round's collectives and outer step altogether.
    duration_s: float


class DiLoCo:
    """Keeps the parameters of all members together while each trains on its own.

    Three lines in a training loop:

        outer = DiLoCo(comm, params, inner_steps=50)
        for batch in batches:
            ...                 # change the arrays of params: an inner step
            outer.step()        # every 50th call averages over all members

    A round ends with: pseudo-gradient = outer minus inner parameters; its average over all
    members; one step of the outer optimizer along it; inner parameters := outer parameters.
    Then waiting peers are let in and given the state: outer parameters, the optimizer's
    buffers and the number of rounds. All members hold the same bits of it after every round.
    Inner optimizers keep their state across rounds; it is each peer's own.

    Memory: the parameters four times over (outer, momentum, pseudo-gradient, average).

    Attributes:
        state: what is shared, to save a checkpoint from; read it between steps only. Its
            arrays are `outer/NAME`, `momentum/NAME` for each parameter, and `round`.
    """

    def __init__(
        self,
        comm: Collectives,
        params: Mapping[str, NDArray[np.floating]],
        inner_steps: int,
        *,
        optimizer: OuterOptimizer | None = None,
        codec: str | Codec = "raw",
        timeout_s: float | None = None,
    ) -> None:
        """Take part with `params`: a collective, the first one after `connect`.

        Args:
            comm: one communicator carries one DiLoCo.
            params: arrays by name, all float32 or all float64, writable, changed in place to
                the parameters of the run. Names and shapes are the same on all members. An
                entry may be replaced between steps, by an array of the same shape and dtype.
            inner_steps: calls of `step` to a round; the same on all members.
            optimizer: the outer optimizer, the same on all members; `nesterov()` by default.
            codec: of the pseudo-gradients, as `Communicator.all_reduce` takes it. "uint8" is
                a quarter of the bytes.
            timeout_s: for each collective, as the communicator takes it; None waits.

        Raises:
            ValueError, TypeError: `params` or `inner_steps` are not as described.
            RinghaulError: as `Communicator.sync_state` raises it.
        """
        if inner_steps < 1:
            raise ValueError(f"inner_steps is {inner_steps}; it has to be 1 or more")
        self.inner_steps = inner_steps
        self._comm = comm
        self._params = params
        self._optimizer = nesterov() if optimizer is None else optimizer
        self._codec = codec
        self._timeout_s = timeout_s
        self._inner_step = 0

        self._outer = _flatten(params)
        self._buffers = self._optimizer.make_buffers(self._outer)
        self._pseudo_gradient = np.zeros_like(self._outer)
        self._average = np.zeros_like(self._outer)
        self._round = np.zeros(1, np.int64)
        self._outer_views = _views(self._outer, params)
        self._gradient_views = _views(self._pseudo_gradient, params)

        shared: dict[str, NDArray[np.floating] | NDArray[np.int64]] = {"round": self._round}
        for prefix, flat in {"outer": self._outer, **self._buffers}.items():
            for name, view in _views(flat, params).items():
                shared[f"{prefix}/{name}"] = view
        self.state = SharedState(shared, revision=0)

        #: Revision of the last committed sync; None before the first.
        self._synced_revision: int | None = None
        #: The all-reduce whose outer step is done, while its round is not over.
        self._reduced: ReduceResult | None = None
        #: Newcomers were admitted and wait for the state.
        self._sync_due = True
        self._sync_if_due()
        self._load_outer()

    @property
    def round(self) -> int:
        """Rounds committed in this run so far, also those before this peer came."""
        return int(self._round[0])

    def step(self) -> RoundInfo | None:
        """Count one inner step; every `inner_steps`-th call runs a round on all members.

        Returns:
            None within a round; at its end what happened. `params` then holds the outer
            parameters, the same bits on all members.

        Raises:
            CallTimeout: `timeout_s` passed, on all members. Call `step` again: it goes on
                with the round where it stopped.
            TypeError, ValueError: an entry of `params` changed its dtype or shape.
            RinghaulError: as the communicator raises it; a lost member is no error.
        """
        self._inner_step += 1
        if self._inner_step < self.inner_steps:
            return None
        info = self._finish_round()
        self._inner_step = 0
        return info

    def _finish_round(self) -> RoundInfo:
        """Average, step, admit, sync; after an error a second call skips what is done."""
        began_at = time.monotonic()
        if self._reduced is None:
            reduced = self._reduce()
            self._optimizer.step(self._outer, self._average, self._buffers)
            self._round += 1
            self._reduced = reduced
        reduced = self._reduced
        admitted = self._admit()
        self._load_outer()
        self._reduced = None
        return RoundInfo(
            round=self.round,
            contributors=reduced.contributors,
            world_size=reduced.world_size,
            attempts=reduced.attempts,
            admitted=admitted,
            gradient_norm=math.sqrt(float(np.dot(self._average, self._average))),
            reduce_s=reduced.duration_s,
            duration_s=time.monotonic() - began_at,
        )

    def _reduce(self) -> ReduceResult:
        """Average the pseudo-gradients of all members into `_average`.

        Too few members (`min_world_size`) abort on all of them: they admit until there are
        enough and try again, with their inner steps kept. Who comes in meanwhile gets the
        state as it was at the end of the last round, and makes the round's inner steps first.
        """
        while True:
            for name, outer in self._outer_views.items():
                inner = _checked(name, self._params[name], outer)
                np.subtract(outer, inner, out=self._gradient_views[name])
            try:
                return self._comm.all_reduce(
                    self._pseudo_gradient,
                    "avg",
                    out=self._average,
                    codec=self._codec,
                    timeout_s=self._timeout_s,
                )
            except CollectiveAborted:
                self._admit()

    def _admit(self) -> bool:
        """Let waiting peers in and give them the state. Were there any?"""
        if not self._sync_due:
            self._sync_due = self._comm.admit(self._timeout_s).admitted
        return self._sync_if_due()

    def _sync_if_due(self) -> bool:
        """Meet the newcomers in a sync, once for each admission. Was there one?

        Members come to a sync at the last committed revision plus one, the rule for a content
        that went on; a sync that failed is tried with the same number. Too few members
        (`min_world_size`) abort it on all of them: they wait in `admit` and sync with whoever
        comes.
        """
        if not self._sync_due:
            return False
        if self._synced_revision is not None:
            self.state.revision = self._synced_revision + 1
        while self._sync_due:
            try:
                info = self._comm.sync_state(self.state, timeout_s=self._timeout_s)
            except CollectiveAborted:
                self._comm.admit(self._timeout_s)
            else:
                self._synced_revision = info.revision
                self._sync_due = False
        return True

    def _load_outer(self) -> None:
        """Inner parameters := outer parameters, into the caller's arrays."""
        for name, outer in self._outer_views.items():
            np.copyto(_checked(name, self._params[name], outer), outer)


def _flatten(params: Mapping[str, NDArray[np.floating]]) -> FloatArray:
    """A flat copy of all parameters, by sorted names: the order of insertion does not matter.

    Raises:
        ValueError: there are none, or one is read-only.
        TypeError: they are not all float32 or all float64.
    """
    if not params:
        raise ValueError("params is empty: there is nothing to train")
    dtypes = {np.asarray(array).dtype for array in params.values()}
    if dtypes not in ({np.dtype(np.float32)}, {np.dtype(np.float64)}):
        found = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise TypeError(f"params are {found}; they have to be all float32 or all float64")
    for name, array in params.items():
        if not array.flags.writeable:
            raise ValueError(f"parameter {name!r} is read-only; DiLoCo writes into it")
    return np.concatenate([params[name].ravel() for name in sorted(params)])


def _views(flat: FloatArray, params: Mapping[str, NDArray[np.floating]]) -> dict[str, FloatArray]:
    """Parts of `flat` by name, in the shapes of `params`."""
    views: dict[str, FloatArray] = {}
    start = 0
    for name in sorted(params):
        stop = start + params[name].size
        views[name] = flat[start:stop].reshape(params[name].shape)
        start = stop
    return views


def _checked(name: str, inner: NDArray[np.floating], outer: FloatArray) -> FloatArray:
    """`inner`, if it still is what the run is about; NumPy would convert or broadcast it."""
    if inner.dtype != outer.dtype:
        raise TypeError(f"parameter {name!r} became {inner.dtype}; the run has {outer.dtype}")
    if inner.shape != outer.shape:
        raise ValueError(f"parameter {name!r} became {inner.shape}; the run has {outer.shape}")
    return inner
