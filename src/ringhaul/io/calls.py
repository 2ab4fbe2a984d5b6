"""Calls of the user on their way through the I/O thread, and what they result in."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import trio
from numpy.typing import NDArray

from ringhaul.core.peer.steps import View
from ringhaul.ids import CallId, Rank
from ringhaul.io.buffers import BufferPool
from ringhaul.io.coded_transfer import CodedTransfer
from ringhaul.io.progress import Progress
from ringhaul.io.ring_transfer import RingTransfer
from ringhaul.io.signals import Signal
from ringhaul.io.state_serve import Served
from ringhaul.quant import RAW, Codec, ErrorFeedback, ErrorMeter, Reservation
from ringhaul.state.content import HashedState, Stage
from ringhaul.state.digest import Mapper
from ringhaul.wire.coordinator_messages import SyncPlan
from ringhaul.wire.records import Signature, StateReport


class StateLike(Protocol):
    """What the I/O layer needs of a shared state."""

    revision: int

    def publish(self, stage: Stage, revision: int, mapper: Mapper = map) -> None:
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
    compression: float = field(default=1.0, init=False)

    def memory(self) -> Iterator[tuple[NDArray[Any], bool]]:
        """The caller's memory that it needs until its end, and whether that is written."""
        yield from ()

    def claim(self) -> None:
        """Take what no other call may use meanwhile; refused with ValueError if one does."""

    def disclaim(self) -> None:
        """Leave to others what `claim` took, or did not come to take."""

    def end(self, *, view: View | None = None, error: BaseException | None = None) -> None:
        """Wake the caller."""
        if not self.ended.is_set():
            self.view = view
            self.error = error
            self.duration_s = time.perf_counter() - self.began_at
            if self.let_go is not None:
                self.let_go()
            self.disclaim()
            self.ended.set()


@dataclass
class AdmitCall(PendingCall):
    """An `admit`."""

    timeout_s: float | None = None


@dataclass
class CollectiveCall(PendingCall):
    """A collective that moves data around the ring; a barrier moves none.

    Decides which memory an attempt reads and writes, and what of it becomes the caller's.
    """

    signature: Signature = field(kw_only=True)
    tag: str | None = None
    timeout_s: float | None = None
    own: NDArray[Any] | None = None
    transfer: RingTransfer | None = None
    #: Its place in an `all_reduce_many`.
    batch_index: int | None = None

    def memory(self) -> Iterator[tuple[NDArray[Any], bool]]:
        """The caller's arrays, and whether they are written."""
        if self.own is not None:
            yield self.own, False

    def result_memory(
        self, rank: Rank, world_size: int, buffers: BufferPool
    ) -> NDArray[Any] | None:
        """Where an attempt on that rank writes its result; None: freshly allocated."""
        raise NotImplementedError

    def commit(self, transfer: RingTransfer) -> None:
        """The verdict is that it is done: the result becomes the caller's."""

    def give_back(self, buffers: BufferPool) -> None:
        """The call has ended: private memory is free again."""


@dataclass
class ReduceCall(CollectiveCall):
    """An `all_reduce`, or a barrier, which has no arrays.

    `target` is where the result goes on a commit; with `out=` the ring writes to it directly.
    """

    codec: Codec = RAW
    target: NDArray[Any] | None = None
    is_in_place: bool = True
    result: NDArray[Any] | None = None
    #: What encoding lost in the attempt that was committed; None unless that is measured.
    meter: ErrorMeter | None = None
    #: Its tag's residuals, if the codec is an `ErrorFeedback`.
    reservation: Reservation | None = field(default=None, init=False)

    def claim(self) -> None:
        """Error feedback has one call of a tag at a time."""
        if isinstance(self.codec, ErrorFeedback):
            assert self.own is not None
            self.reservation = self.codec.reserve(self.tag, self.own.size, self.own.dtype)

    def disclaim(self) -> None:
        """The tag may be used again."""
        if self.reservation is not None:
            self.reservation.release()
            self.reservation = None  # as large as the array, and a Work may be kept

    def memory(self) -> Iterator[tuple[NDArray[Any], bool]]:
        """The input is read, and written only if it is the target too."""
        yield from super().memory()
        if self.target is not None:
            yield self.target, True

    def result_memory(
        self, rank: Rank, world_size: int, buffers: BufferPool
    ) -> NDArray[Any] | None:
        """`out`, or a buffer that the input is safe from."""
        assert self.own is not None
        if self.result is None:
            self.result = self.target
            if self.is_in_place:
                self.result = buffers.lend(self.own.size, self.own.dtype)
        return self.result

    def commit(self, transfer: RingTransfer) -> None:
        """Copy to the caller's array what is not there yet; what the codec lost counts now."""
        self.compression = transfer.compression
        if isinstance(transfer, CodedTransfer):
            self.meter = transfer.meter
            if transfer.feedback is not None:
                transfer.feedback.commit()
        if self.is_in_place and self.result is not None:
            assert self.target is not None
            np.copyto(self.target, self.result)

    def give_back(self, buffers: BufferPool) -> None:
        """The private buffer may serve the next call."""
        if self.is_in_place and self.result is not None:
            buffers.give_back(self.result)
            self.result = None


@dataclass
class BroadcastCall(ReduceCall):
    """A `broadcast`. The root reads its array and writes nothing, unless there is an `out`."""

    is_root: bool = False

    def memory(self) -> Iterator[tuple[NDArray[Any], bool]]:
        """In place, the root writes nothing."""
        for array, is_written in super().memory():
            yield array, is_written and not (self.is_root and self.is_in_place)

    def result_memory(
        self, rank: Rank, world_size: int, buffers: BufferPool
    ) -> NDArray[Any] | None:
        """The root sends from its own array."""
        return self.own if self.is_root else super().result_memory(rank, world_size, buffers)

    def commit(self, transfer: RingTransfer) -> None:
        """Copy to the caller's array what is not there yet."""
        if not self.is_root:
            super().commit(transfer)
        elif not self.is_in_place:
            assert self.target is not None
            np.copyto(self.target, transfer.result)


@dataclass
class ValueCall(CollectiveCall):
    """A collective whose result has a shape of its own: it is returned, in `out` if it fits."""

    out: NDArray[Any] | None = None
    value: NDArray[Any] | None = field(default=None, init=False)

    def memory(self) -> Iterator[tuple[NDArray[Any], bool]]:
        """`out` is written."""
        yield from super().memory()
        if self.out is not None:
            yield self.out, True


@dataclass
class GatherCall(ValueCall):
    """An `all_gather`: as many rows as there are members; after a loss fewer are needed."""

    shape: tuple[int, ...] = ()

    def result_memory(
        self, rank: Rank, world_size: int, buffers: BufferPool
    ) -> NDArray[Any] | None:
        """The first rows of `out`, if it has as many."""
        assert self.own is not None
        if self.out is None or len(self.out) < world_size:
            return None
        return self.out.reshape(-1)[: world_size * self.own.size]

    def commit(self, transfer: RingTransfer) -> None:
        """Cut the result into rows."""
        world_size = transfer.plan.world_size
        if self.out is not None and len(self.out) >= world_size:
            self.value = self.out[:world_size]
        else:
            self.value = transfer.result.reshape(world_size, *self.shape)


@dataclass
class ScatterCall(ValueCall):
    """A `reduce_scatter`: what this rank gets depends on its rank and on the world size.

    `out` is of one dimension; long enough for the ring that the call was begun in.
    """

    def result_memory(
        self, rank: Rank, world_size: int, buffers: BufferPool
    ) -> NDArray[Any] | None:
        """The head of `out`, unless a loss has made the chunk longer than that."""
        assert self.own is not None
        base, longer = divmod(self.own.size, world_size)
        size = base + (rank < longer)
        return None if self.out is None or self.out.size < size else self.out[:size]

    def commit(self, transfer: RingTransfer) -> None:
        """The chunk becomes the caller's."""
        self.value = transfer.result


@dataclass
class SyncCall(PendingCall):
    """A `sync_state`."""

    signature: Signature = field(kw_only=True)
    state: StateLike = field(kw_only=True)
    report: StateReport = field(kw_only=True)
    #: What is compared and transferred, as it was when the call began.
    content: HashedState = field(kw_only=True)
    timeout_s: float | None = None
    upload_bytes_per_s: float | None = None
    plan: SyncPlan | None = None
    #: The elected content, as far as it is here; kept from attempt to attempt.
    stage: Stage | None = None
    served: Served | None = None
    fetching: trio.CancelScope | None = None
    revision: int = 0
    progress: Progress = field(default_factory=Progress)

    def memory(self) -> Iterator[tuple[NDArray[Any], bool]]:
        """All entries that are compared."""
        for view in self.content.views:
            yield np.frombuffer(view, np.uint8), True
