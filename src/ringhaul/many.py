"""`all_reduce_many`: a window of operations kept full, small arrays packed together.

Decides which arrays travel together, when an operation is posted, and what is left to do
after an error. Waits for nothing: it says what to wait for, and a thread or a task does.

All members have to make the same operations, also when one of them has posted more than
another before both hear of an error. So what travels together follows from the arguments
alone, operations are posted in one order, and after an error each member gives up those it
has not posted but others may have.
"""

import copy
import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringhaul.arguments import (
    MANY_IN_FLIGHT_MAX,
    check_timeout,
    parse_max_in_flight,
    parse_on_loss,
    parse_op,
)
from ringhaul.arrays import flat_views, overlap
from ringhaul.core.peer.steps import BatchFailed, View
from ringhaul.errors import MismatchError, RinghaulError
from ringhaul.ids import ReduceOp
from ringhaul.io.calls import ReduceCall
from ringhaul.io.peer_runtime import PeerRuntime
from ringhaul.io.signals import Signal
from ringhaul.quant import RAW, Codec, ErrorFeedback, ErrorMeter, check_codec, find_codec
from ringhaul.reduction import reduce_info
from ringhaul.results import ReduceInfo
from ringhaul.ring.reduce import check_op, dtype_name
from ringhaul.wire.records import CollectiveKind, Signature

#: Arrays below this are packed: an operation costs as much as moving so many bytes.
PACKED_BYTES_MAX = 2 << 20
#: What is packed together, at most: several of them in flight overlap each other.
PARCEL_BYTES_MAX = 4 << 20
#: A parcel that is posted at the deadline fails for all members by its own timeout.
_TIMEOUT_MIN_S = 1e-3

Array = NDArray[Any]


class ParcelBuffers:
    """Memory that arrays are packed into: kept, as fresh memory costs more than the packing."""

    _KEPT_MAX = 8

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def lend(self, element_count: int, dtype: np.dtype[Any]) -> Array:
        """An uninitialized array of one dimension."""
        wanted = element_count * dtype.itemsize
        buffer = self._free.pop() if self._free else None
        if buffer is None or buffer.nbytes < wanted:
            buffer = np.empty(PARCEL_BYTES_MAX, np.uint8)
        return buffer[:wanted].view(dtype)

    def take_back(self, array: Array | None) -> None:
        """Nobody uses it any more."""
        base = None if array is None else array.base
        if isinstance(base, np.ndarray) and len(self._free) < self._KEPT_MAX:
            self._free.append(base)


class Parcel:
    """Arrays of one dtype that travel as one operation; one of them alone is not packed."""

    __slots__ = ("call", "dtype", "element_count", "places")

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        #: Of the caller's list.
        self.places: list[int] = []
        self.element_count = 0
        self.call: ReduceCall | None = None


def plan_parcels(views: Sequence[Array], *, packs: bool) -> list[Parcel]:
    """Cut the caller's list into operations; follows from dtypes and sizes alone."""
    planned: list[Parcel] = []
    filling: dict[np.dtype[Any], Parcel] = {}
    parcel: Parcel | None = None  # the one that was filled last
    for place, view in enumerate(views):
        dtype, count = view.dtype, view.size
        wanted = count * dtype.itemsize
        if not packs or wanted >= PACKED_BYTES_MAX:
            alone = Parcel(dtype)
            alone.places.append(place)
            alone.element_count = count
            planned.append(alone)
            continue
        if parcel is None or dtype is not parcel.dtype:
            parcel = filling.get(dtype)
        if parcel is None or parcel.element_count * dtype.itemsize + wanted > PARCEL_BYTES_MAX:
            parcel = filling[dtype] = Parcel(dtype)
            planned.append(parcel)
        parcel.places.append(place)
        parcel.element_count += count
    return planned


class Batch:
    """One `all_reduce_many` on its way.

    `run` and `wind_up` yield signals: wait for each, then go on. When either is exhausted no
    operation is in flight, and all memory is the caller's again.
    """

    def __init__(
        self,
        arrays: Iterable[object],
        op: str | ReduceOp,
        *,
        codec: str | Codec,
        max_in_flight: int,
        on_loss: str,
        timeout_s: float | None,
        measure_error: bool,
        buffers: ParcelBuffers,
    ) -> None:
        self._began_at = time.monotonic()
        self._op = parse_op(op)
        check_timeout(timeout_s)
        self._max_in_flight = parse_max_in_flight(max_in_flight)
        self._codec = find_codec(codec)
        self._on_loss = parse_on_loss(on_loss)
        self._timeout_s = timeout_s
        self._measure_error = measure_error
        given = _listed(arrays)
        self.views = flat_views(given, "arrays")
        for dtype in {view.dtype for view in self.views}:
            check_op(self._op, dtype)
            check_codec(self._codec, self._op, dtype)
        if isinstance(self._codec, ErrorFeedback):
            raise ValueError("error feedback keeps its residuals by tag: use all_reduce with tag=")
        if common := overlap(given, self.views):
            raise ValueError("arrays[{}] and arrays[{}] share memory".format(*common))
        # lossy codecs scale a block by its largest value: one array must not spoil another
        self._parcels = plan_parcels(self.views, packs=self._codec is RAW)
        self._layout = self._describe_layout()
        self._buffers = buffers
        self._next = 0
        self._is_over = False
        self._in_flight: dict[Parcel, ReduceCall] = {}
        self._ended: deque[Parcel] = deque()
        self._wake = Signal()
        self.infos: list[ReduceInfo | None] = [None] * len(self.views)
        #: The newest that a verdict has named.
        self.view: View | None = None
        #: Of the first operation that failed, in the order of posting.
        self._failed: tuple[int, BaseException] | None = None

    def _describe_layout(self) -> str:
        """Differs if anything differs between two members that is no other part of a signature."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(np.array([view.size for view in self.views], np.int64).tobytes())
        for parcel in self._parcels:
            digest.update(dtype_name(parcel.dtype).encode())
            digest.update(np.array([-1, *parcel.places], np.int64).tobytes())
        return f"{len(self.views)} arrays, {digest.hexdigest()}"

    @property
    def is_complete(self) -> bool:
        """Is every array reduced?"""
        return None not in self.infos

    # -- the course of it ---------------------------------------------------------------------

    def run(self, runtime: PeerRuntime) -> Iterator[Signal]:
        """Post all, in order; after an error nothing more, and what is in flight ends."""
        while True:
            self._wake = Signal()
            self._settle_ended()
            while self._may_post():
                self._post(runtime)
            if self._failed is not None:
                self._end(runtime)
            if not self._in_flight:
                return
            if not self._ended:
                yield self._wake

    def wind_up(self, runtime: PeerRuntime, reason: str) -> Iterator[Signal]:
        """The caller was interrupted: end it for all members, wait for the verdicts."""
        self._give_up_in_flight(runtime, reason)
        self._give_up_rest(runtime)
        while self._in_flight:
            self._wake = Signal()
            self._settle_ended()
            if self._in_flight and not self._ended:
                yield self._wake

    def error(self) -> BaseException | None:
        """The error of the first operation that failed, the same on all members, with `infos`."""
        if self._failed is None:
            return None
        error = copy.copy(self._failed[1])
        error.__cause__ = self._failed[1].__cause__
        if isinstance(error, RinghaulError):
            error.infos = tuple(self.infos)
            error.tag = None  # not the caller's
        return error

    def _may_post(self) -> bool:
        return (
            self._failed is None
            and self._next < len(self._parcels)
            and len(self._in_flight) < self._max_in_flight
        )

    def _post(self, runtime: PeerRuntime) -> None:
        parcel = self._parcels[self._next]
        call = self._prepare(parcel)
        call.ended.when_set(lambda: self._on_ended(parcel))
        parcel.call = self._in_flight[parcel] = call
        self._next += 1
        runtime.submit(call)

    def _prepare(self, parcel: Parcel) -> ReduceCall:
        timeout_s = None
        if self._timeout_s is not None:
            left_s = self._began_at + self._timeout_s - time.monotonic()
            timeout_s = max(left_s, _TIMEOUT_MIN_S)
        signature = Signature(
            kind=CollectiveKind.ALL_REDUCE,
            op=self._op,
            dtype=dtype_name(parcel.dtype),
            element_count=parcel.element_count,
            codec=self._codec.name,
            layout=self._layout,
            on_loss=self._on_loss,
        )
        if len(parcel.places) == 1:
            own = target = self.views[parcel.places[0]]
        else:
            own = self._buffers.lend(parcel.element_count, parcel.dtype)
            target = self._buffers.lend(parcel.element_count, parcel.dtype)
            np.concatenate([self.views[place] for place in parcel.places], out=own)
        return ReduceCall(
            signature=signature,
            codec=self._codec,
            timeout_s=timeout_s,
            own=own,
            target=target,
            is_in_place=own is target,
            batch_index=self._next,
            meter=ErrorMeter() if self._measure_error else None,
        )

    def _on_ended(self, parcel: Parcel) -> None:
        """In the I/O thread, as a rule."""
        self._ended.append(parcel)  # first: whoever is woken, or just begins to wait, finds it
        self._wake.set()

    def _settle_ended(self) -> None:
        while self._ended:
            self._settle(self._ended[0])
            self._ended.popleft()  # only now: an interrupt in between loses nothing

    def _settle(self, parcel: Parcel) -> None:
        """Take one result. May be interrupted, and is called again then."""
        call = self._in_flight.get(parcel)
        if call is None:
            return
        if call.error is None:
            if len(parcel.places) > 1:
                self._unpack(call, parcel)
            info = reduce_info(call)
            for place in parcel.places:
                self.infos[place] = info
        elif self._failed is None or parcel.places[0] < self._failed[0]:
            self._failed = parcel.places[0], call.error
        if call.view and (self.view is None or call.view.index > self.view.index):
            self.view = call.view
        del self._in_flight[parcel]
        if len(parcel.places) > 1:
            self._buffers.take_back(call.own)
            self._buffers.take_back(call.target)

    def _unpack(self, call: ReduceCall, parcel: Parcel) -> None:
        assert call.target is not None
        start = 0
        for place in parcel.places:
            view = self.views[place]
            stop = start + view.size
            view[:] = call.target[start:stop]
            start = stop

    def _end(self, runtime: PeerRuntime) -> None:
        """An operation has failed."""
        assert self._failed is not None
        if isinstance(self._failed[1], MismatchError):  # others may never come to the rest
            self._give_up_in_flight(runtime, "a mismatch")
        self._give_up_rest(runtime)

    def _give_up_in_flight(self, runtime: PeerRuntime, reason: str) -> None:
        for call in list(self._in_flight.values()):
            runtime.give_up(call, reason)

    def _give_up_rest(self, runtime: PeerRuntime) -> None:
        """Nobody shall wait for what this peer will not post.

        Another member may have posted a window more: all that ended there before the failure
        were committed, so they were posted here too.
        """

        def failed() -> BatchFailed:
            """In the I/O thread, where it is known which calls came before an interrupt."""
            made = sum(1 for p in self._parcels if p.call is not None and p.call.id)
            # if not even the first was made, there is no batch
            count = min(len(self._parcels) - made, MANY_IN_FLIGHT_MAX) if made else 0
            return BatchFailed(made, count, "another operation of its all_reduce_many failed")

        if not self._is_over:
            self._is_over = True
            runtime.end_batch(failed)


def _listed(arrays: object) -> list[object]:
    """A list of the caller's arrays; one array, whose rows could be meant, is refused."""
    is_array = hasattr(arrays, "__array_interface__") or hasattr(arrays, "__dlpack__")
    if is_array or isinstance(arrays, (Mapping, str, bytes, bytearray, memoryview)):
        raise TypeError(f"arrays is a list of arrays, not one {type(arrays).__name__}")
    if not isinstance(arrays, Iterable):
        raise TypeError(f"arrays is a list of arrays, not a {type(arrays).__name__}")
    return list(arrays)
