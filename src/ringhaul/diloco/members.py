"""What the training loops need of a communicator: a few of its calls, and of their results."""

import inspect
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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
    @property
    def sent_bytes(self) -> int: ...
    @property
    def received_bytes(self) -> int: ...


class InFlight(Protocol):
    """What is used of a `Work`."""

    def done(self) -> bool: ...
    def wait(self, timeout_s: float | None = None) -> ReduceResult: ...


class SyncResult(Protocol):
    """What is read of a `SyncInfo`."""

    @property
    def revision(self) -> int: ...


class AdmitResult(Protocol):
    """What is read of a `Membership`."""

    @property
    def admitted(self) -> bool: ...


class Collectives(Protocol):
    """The part of a communicator that the training loops use."""

    @property
    def peer_id(self) -> str: ...
    @property
    def world_size(self) -> int: ...
    @property
    def pending_peers(self) -> int: ...
    @property
    def group_count(self) -> int: ...
    def admit(self, timeout_s: float | None = None) -> AdmitResult: ...
    def all_reduce_async(
        self,
        array: NDArray[np.floating],
        op: str = "sum",
        *,
        out: NDArray[np.floating] | None = None,
        codec: str | Codec = "raw",
        tag: str | None = None,
        timeout_s: float | None = None,
    ) -> InFlight: ...
    def sync_state(
        self, state: SharedState, strategy: str = "popular", timeout_s: float | None = None
    ) -> SyncResult: ...


def collectives_of(comm: Collectives) -> Collectives:
    """What a training loop was given as `comm`.

    Raises:
        TypeError: it is no communicator, or one whose calls are awaited.
    """
    call = getattr(comm, "all_reduce_async", None)
    if call is None or inspect.iscoroutinefunction(comm.sync_state):
        kind = f"{type(comm).__module__}.{type(comm).__qualname__}"
        raise TypeError(f"comm is what ringhaul.connect(...) returns, not a {kind}")
    return comm
