"""The calls of `ringhaul` with async and await, for trio programs.

    async with await ringhaul.aio.connect("host:48148") as comm:
        await comm.admit()
        info = await comm.all_reduce(gradient, op="avg")

The runtime stays in its own thread; a task that waits for it blocks neither its event loop
nor a thread. What each call means, takes and raises is said at the blocking one of
`ringhaul.Communicator`; decided here is only what cancelling means: it ends a call on all
members, as an interrupt does, and the cancelled task goes on once the verdict is there, so
that the memory is the caller's again. If the call was committed all the same, it returns
normally.
"""

import functools
import os
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, SupportsIndex

import trio

from ringhaul import limits
from ringhaul.arguments import check_timeout
from ringhaul.arrays import in_kind_of
from ringhaul.collectives import prepare_all_gather, prepare_broadcast, prepare_reduce_scatter
from ringhaul.ids import ReduceOp
from ringhaul.io.calls import AdmitCall, PendingCall, ReduceCall
from ringhaul.io.peer_runtime import PeerRuntime
from ringhaul.io.signals import Signal
from ringhaul.joining import check_joined, start_runtime
from ringhaul.many import Batch
from ringhaul.member import Member
from ringhaul.quant import Codec
from ringhaul.reduction import (
    check_sync_state,
    prepare_all_reduce,
    prepare_barrier,
    prepare_sync_state,
    reduce_info,
    sync_info,
)
from ringhaul.results import Membership, ReduceInfo, SyncInfo
from ringhaul.state.shared import SharedState
from ringhaul.work import settle, still_in_flight

#: The runtime ends by itself, after its goodbye; a bug shall not hold a program for ever.
_CLOSE_S = limits.GOODBYE_S + 3.0


async def connect(
    address: str | None = None,
    group: int = 0,
    streams: int | None = None,
    name: str | None = None,
    min_world_size: int = 1,
    timeout_s: float | None = 60.0,
    admission_timeout_s: float | None = None,
    *,
    listen: str | None = None,
    advertise: Sequence[str] = (),
) -> "Communicator":
    """Take part in a run: as `ringhaul.connect`. Cancelling leaves nothing behind.

    Raises:
        RuntimeError: no trio program runs here; nothing was sent. And as `ringhaul.connect`.
    """
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        text = "ringhaul.aio is for trio programs (trio.run); with asyncio use ringhaul.connect"
        raise RuntimeError(f"{text} in a thread") from None
    runtime = start_runtime(
        address,
        group=group,
        streams=streams,
        name=name,
        min_world_size=min_world_size,
        timeout_s=timeout_s,
        admission_timeout_s=admission_timeout_s,
        listen=listen,
        advertise=advertise,
    )
    try:
        await _wait(runtime.joined)
    except BaseException:
        await _leave(runtime)
        raise
    return Communicator(check_joined(runtime))


class Work:
    """An operation in flight, as `ringhaul.Work`. `await work` is `await work.wait()`."""

    def __init__(self, call: ReduceCall, member: Member) -> None:
        self._call = call
        self._member = member

    def done(self) -> bool:
        """Has it ended, well or not?"""
        return self._call.ended.is_set()

    async def wait(self, timeout_s: float | None = None) -> ReduceInfo:
        """Wait for the verdict. `timeout_s`, or cancelling, ends the wait, not the operation.

        Any number of tasks may wait, in any order, and again; all get the same result.
        """
        check_timeout(timeout_s)
        with trio.move_on_after(float("inf") if timeout_s is None else timeout_s):
            await _wait(self._call.ended)
        if not self.done():
            raise still_in_flight(self._call, timeout_s)
        return settle(self._call, self._member._show)

    def __await__(self) -> Generator[Any, None, ReduceInfo]:
        """Wait for the verdict."""
        return self.wait().__await__()


class Communicator(Member):
    """A member of a run, for tasks of one trio program. Made by `connect` of this module.

    One call at a time, apart from `Work`s, which any task may wait for.
    """

    async def admit(self, timeout_s: float | None = None) -> Membership:
        """Let waiting peers in: as `ringhaul.Communicator.admit`."""
        check_timeout(timeout_s)
        await self._run(AdmitCall(timeout_s=timeout_s))
        return self._membership()

    async def all_reduce(
        self,
        array: object,
        op: str | ReduceOp = "sum",
        *,
        out: object | None = None,
        codec: str | Codec = "raw",
        tag: str | None = None,
        on_loss: str = "retry",
        timeout_s: float | None = None,
        measure_error: bool = False,
    ) -> ReduceInfo:
        """Reduce an array over all members: as `ringhaul.Communicator.all_reduce`."""
        call = prepare_all_reduce(
            array,
            op,
            out=out,
            codec=codec,
            tag=tag,
            on_loss=on_loss,
            timeout_s=timeout_s,
            measure_error=measure_error,
        )
        await self._run(call)
        return reduce_info(call)

    def all_reduce_async(
        self,
        array: object,
        op: str | ReduceOp = "sum",
        *,
        out: object | None = None,
        codec: str | Codec = "raw",
        tag: str | None = None,
        on_loss: str = "retry",
        timeout_s: float | None = None,
        measure_error: bool = False,
    ) -> Work:
        """Begin a reduction: as `ringhaul.Communicator.all_reduce_async`. Waits for nothing."""
        call = prepare_all_reduce(
            array,
            op,
            out=out,
            codec=codec,
            tag=tag,
            on_loss=on_loss,
            timeout_s=timeout_s,
            measure_error=measure_error,
        )
        self._begin(call)
        return Work(call, self)

    async def all_reduce_many(
        self,
        arrays: Iterable[object],
        op: str | ReduceOp = "sum",
        *,
        codec: str | Codec = "raw",
        max_in_flight: int = 8,
        on_loss: str = "retry",
        timeout_s: float | None = None,
        measure_error: bool = False,
    ) -> list[ReduceInfo]:
        """Reduce each of many arrays: as `ringhaul.Communicator.all_reduce_many`."""
        batch = Batch(
            arrays,
            op,
            codec=codec,
            max_in_flight=max_in_flight,
            on_loss=on_loss,
            timeout_s=timeout_s,
            measure_error=measure_error,
            buffers=self._buffers,
        )
        return await self._run_batch(batch)

    async def broadcast(
        self,
        array: object,
        root: SupportsIndex = 0,
        *,
        out: object | None = None,
        tag: str | None = None,
        on_loss: str = "retry",
        timeout_s: float | None = None,
    ) -> ReduceInfo:
        """Give all members the array of one: as `ringhaul.Communicator.broadcast`."""
        call = prepare_broadcast(
            self._view,
            self.peer_id,
            array,
            root,
            out=out,
            tag=tag,
            on_loss=on_loss,
            timeout_s=timeout_s,
        )
        await self._run(call)
        return reduce_info(call)

    async def all_gather(
        self,
        array: object,
        *,
        out: object | None = None,
        tag: str | None = None,
        on_loss: str = "retry",
        timeout_s: float | None = None,
    ) -> Any:  # noqa: ANN401 - the caller's kind
        """Collect the arrays of all members: as `ringhaul.Communicator.all_gather`."""
        call = prepare_all_gather(
            self._view, array, out=out, tag=tag, on_loss=on_loss, timeout_s=timeout_s
        )
        await self._run(call)
        assert call.value is not None
        return in_kind_of(array, call.value)

    async def reduce_scatter(
        self,
        array: object,
        op: str | ReduceOp = "sum",
        *,
        out: object | None = None,
        tag: str | None = None,
        on_loss: str = "retry",
        timeout_s: float | None = None,
    ) -> Any:  # noqa: ANN401 - the caller's kind
        """Reduce, and keep a chunk: as `ringhaul.Communicator.reduce_scatter`."""
        call = prepare_reduce_scatter(
            self._view, array, op, out=out, tag=tag, on_loss=on_loss, timeout_s=timeout_s
        )
        await self._run(call)
        assert call.value is not None
        return in_kind_of(array, call.value)

    async def barrier(self, timeout_s: float | None = None) -> None:
        """Return when every member of the group has called it."""
        await self._run(prepare_barrier(timeout_s))

    async def sync_state(
        self,
        state: SharedState,
        strategy: str = "popular",
        timeout_s: float | None = None,
        *,
        allow_differences: Collection[str] = (),
        upload_bytes_per_s: float | None = None,
    ) -> SyncInfo:
        """Make a shared state equal on all members: as `ringhaul.Communicator.sync_state`.

        It is hashed in a thread, so that the event loop goes on.
        """
        chosen = check_sync_state(state, strategy, timeout_s, allow_differences, upload_bytes_per_s)
        prepare = functools.partial(
            prepare_sync_state, state, chosen, timeout_s, allow_differences, upload_bytes_per_s
        )
        self._refuse_in_use(state, allow_differences)  # before it is hashed
        call = await self._runtime.system.run_in_thread(prepare)
        await self._run(call)
        return sync_info(call)

    async def close(self) -> None:
        """Leave the run in an orderly way, also if cancelled: the goodbye is short."""
        self._finalizer.detach()
        if os.getpid() != self._pid:
            return  # it is the parent's
        await _leave(self._runtime)

    #: As trio names it.
    aclose = close

    async def __aenter__(self) -> Self:
        """Leave at the end of the block."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave, whatever happened."""
        await self.close()

    # -- inside -------------------------------------------------------------------------------

    async def _run(self, call: PendingCall) -> None:
        """Hand a call over and wait for its end; cancelling ends it for all members."""
        with self._turn():
            self._memory.refuse_overlap(call)
            try:
                self._runtime.submit(call)
                await _wait(call.ended)
            except BaseException as error:
                self._withdraw(call, f"{type(error).__name__} in the caller")
                await self._wait_verdicts(iter([call.ended]))
                self._show(call.view)
                if call.error is not None or not isinstance(error, trio.Cancelled):
                    raise
            self._show(call.view)
            if call.error is not None:
                raise call.error

    async def _run_batch(self, batch: Batch) -> list[ReduceInfo]:
        """Drive an `all_reduce_many`; cancelling ends it for all members."""
        with self._turn():
            self._memory.refuse_overlap_of(batch.views)
            try:
                for signal in batch.run(self._runtime):
                    await _wait(signal)
            except BaseException as error:
                reason = f"{type(error).__name__} in the caller"
                await self._wait_verdicts(batch.wind_up(self._runtime, reason))
                self._show(batch.view)
                if not batch.is_complete or not isinstance(error, trio.Cancelled):
                    raise
            return self._settle_batch(batch)

    async def _wait_verdicts(self, signals: Iterator[Signal]) -> None:
        """Wait, cancelled or not: until then the memory is not the caller's."""
        try:
            with trio.CancelScope(shield=True):
                for signal in signals:
                    await _wait(signal)
        except BaseException:  # interrupted: leave without goodbye
            self._runtime.abandon()
            with trio.move_on_after(1.0, shield=True):
                await _wait(self._runtime.ended)
            raise


async def _leave(runtime: PeerRuntime) -> None:
    """Say goodbye and wait for the end, cancelled or not."""
    runtime.close(wait_s=0)
    with trio.move_on_after(_CLOSE_S, shield=True):
        await _wait(runtime.ended)
        runtime.close()  # the thread is at its very end


async def _wait(signal: Signal) -> None:
    """Wait until another thread sets a signal, or has set it; a checkpoint."""
    token = trio.lowlevel.current_trio_token()
    happened = trio.Event()

    def wake() -> None:
        """In the thread that sets the signal."""
        try:
            token.run_sync_soon(happened.set)
        except trio.RunFinishedError:
            return  # the program is over; nobody waits

    if signal.is_set():
        happened.set()
    else:
        signal.when_set(wake)
    try:
        await happened.wait()
    finally:
        signal.forget(wake)
