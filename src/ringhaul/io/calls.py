"""Calls of the user on their way through the I/O thread, and what they result in."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import trio
from numpy.typing import NDArray

from ringhaul.core.peer.steps import View
from ringhaul.ids import CallId
from ringhaul.io.ring_transfer import RingTransfer
from ringhaul.io.signals import Signal
from ringhaul.wire.coordinator_messages import SyncPlan
from ringhaul.wire.records import Signature, Strategy


class StateLike(Protocol):
    """What the I/O layer needs of a shared state."""

    revision: int

    @property
    def total_bytes(self) -> int:
        """Bytes of all entries."""

    def views(self) -> list[memoryview]:
        """The memory of all entries, in the order of their names."""

    def digest_of(self, buffer: bytearray) -> bytes:
        """The digest that the state would have with this content."""

    def publish(self, buffer: bytearray, revision: int) -> None:
        """Copy a verified content into the caller's arrays."""


@dataclass
class PendingCall:
    """One call, from the caller's thread to its result. `ended` is set exactly once."""

    id: CallId = field(default=CallId(0), init=False)
    view: View | None = field(default=None, init=False)
    error: BaseException | None = field(default=None, init=False)
    attempts: int = field(default=1, init=False)
    ended: Signal = field(default_factory=Signal, init=False)
    #: Called once, before `ended` is set: whoever waits finds its memory free.
    let_go: Callable[[], None] | None = field(default=None, init=False)
    began_at: float = field(default_factory=time.perf_counter, init=False)
    duration_s: float = field(default=0.0, init=False)
    sent_bytes: int = field(default=0, init=False)
    received_bytes: int = field(default=0, init=False)

    def memory(self) -> Iterator[tuple[NDArray[Any], bool]]:
        """The caller's memory that it needs until its end, and whether that is written."""
        yield from ()

    def end(self, *, view: View | None = None, error: BaseException | None = None) -> None:
        """Wake the caller."""
        if not self.ended.is_set():
            self.view = view
            self.error = error
            self.duration_s = time.perf_counter() - self.began_at
            if self.let_go is not None:
                self.let_go()
            self.ended.set()


@dataclass
class AdmitCall(PendingCall):
    """An `admit`."""

    timeout_s: float | None = None


@dataclass
class ReduceCall(PendingCall):
    """An `all_reduce`, or a barrier, which has no arrays.

    `target` is where the result goes on a commit; with `out=` the ring writes to it directly.
    """

    signature: Signature = field(kw_only=True)
    tag: str | None = None
    timeout_s: float | None = None
    own: NDArray[Any] | None = None
    target: NDArray[Any] | None = None
    is_in_place: bool = True
    #: Its place in an `all_reduce_many`.
    batch_index: int | None = None
    result: NDArray[Any] | None = None
    transfer: RingTransfer | None = None

    def memory(self) -> Iterator[tuple[NDArray[Any], bool]]:
        """The input, and where the result goes."""
        if self.own is not None:
            yield self.own, self.is_in_place
        if self.target is not None and not self.is_in_place:
            yield self.target, True


@dataclass
class SyncCall(PendingCall):
    """A `sync_state`."""

    signature: Signature = field(kw_only=True)
    state: StateLike = field(kw_only=True)
    digest: bytes = field(kw_only=True)
    strategy: Strategy = Strategy.POPULAR
    timeout_s: float | None = None
    plan: SyncPlan | None = None
    buffer: bytearray | None = None
    fetching: trio.CancelScope | None = None
    revision: int = 0
    sources: Sequence[str] = ()

    def memory(self) -> Iterator[tuple[NDArray[Any], bool]]:
        """All entries of the state."""
        for view in self.state.views():
            yield np.frombuffer(view, np.uint8), True
