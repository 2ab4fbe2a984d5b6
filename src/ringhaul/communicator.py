"""What users call: `connect` and the blocking `Communicator`.

Checks arguments before any byte is sent, hands calls to the I/O thread, and waits.
"""

import os
import threading
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from ringhaul import limits
from ringhaul.arguments import (
    check_connect,
    check_out,
    check_tag,
    check_timeout,
    flat_view,
    parse_advertised,
    parse_on_loss,
    parse_op,
)
from ringhaul.collectives import RingCollectives
from ringhaul.core.peer.machine import PeerOptions
from ringhaul.core.peer.steps import View
from ringhaul.errors import ClosedError, ConnectError, RinghaulError
from ringhaul.ids import ReduceOp
from ringhaul.io.address import parse_address
from ringhaul.io.calls import AdmitCall, PendingCall, ReduceCall, SyncCall
from ringhaul.io.peer_runtime import PeerRuntime
from ringhaul.results import Membership, ReduceInfo, SyncInfo
from ringhaul.ring.reduce import check_op, dtype_name
from ringhaul.state.shared import SharedState
from ringhaul.wire.records import CollectiveKind, Signature, Strategy


def connect(
    address: str | None = None,
    *,
    group: int = 0,
    streams: int | None = None,
    name: str | None = None,
    min_world_size: int = 1,
    timeout_s: float = 60.0,
    admission_timeout_s: float | None = None,
    listen: str | None = None,
    advertise: Sequence[str] = (),
) -> "Communicator":
    """Take part in a run: returns when this peer is a member.

    Args:
        address: `host:port` of the coordinator; default: `RINGHAUL_COORDINATOR`, else
            `127.0.0.1:48148`. Host names, IPv4 and `[IPv6]`.
        group: peers of one number reduce with each other; admissions are common to all.
        streams: TCP streams to the next rank; None: the library chooses.
        name: shown in messages, and the first part of the peer id.
        min_world_size: the first generation opens when so many are there; below it calls
            raise `CollectiveAborted` and `admit` waits. The same on all members.
        timeout_s: for reaching the coordinator.
        admission_timeout_s: for being let in; None: as long as it takes.
        listen: `host:port` for data connections of other peers; default: all interfaces, a
            free port.
        advertise: further `host[:port]` where others may reach this peer (port forwarding).

    Raises:
        ConnectError: the coordinator was not reached or refused, or no admission in time.
        ValueError: an argument makes no sense; nothing was sent.
    """
    text = address or os.environ.get("RINGHAUL_COORDINATOR") or f"127.0.0.1:{limits.DEFAULT_PORT}"
    host, port = parse_address(text, limits.DEFAULT_PORT)
    check_connect(group, streams, name, min_world_size)
    check_timeout(timeout_s)
    check_timeout(admission_timeout_s, "admission_timeout_s")
    where = (None, 0) if listen is None else parse_address(listen, 0)
    options = PeerOptions(
        coordinator=text,
        name=name or "",
        group=group,
        addresses=(),
        min_world_size=min_world_size,
        timeout_s=timeout_s,
        admission_timeout_s=admission_timeout_s,
    )
    runtime = PeerRuntime(
        host=host,
        port=port,
        options=options,
        streams=streams,
        listen=where,
        advertise=parse_advertised(advertise),
    )
    runtime.start()
    try:
        runtime.joined.wait()
    except BaseException:
        runtime.close(wait_s=1.0)
        raise
    if runtime.view is None:
        raise runtime.error or ConnectError("the I/O thread ended before this peer was a member")
    return Communicator(runtime)


class Communicator(RingCollectives):
    """A member of a run. Made by `connect`; one thread at a time may call it.

    Its properties change only when a call returns, to what the call's verdict names. Closed
    by `close`, at the end of a `with` block, when it is garbage-collected, and at exit.
    """

    def __init__(self, runtime: PeerRuntime) -> None:
        assert runtime.view is not None
        self._runtime = runtime
        self._view: View = runtime.view
        self._busy = threading.Lock()
        self._pid = os.getpid()
        self._finalizer = weakref.finalize(self, _close, runtime, os.getpid())

    # -- who takes part -----------------------------------------------------------------------

    @property
    def peer_id(self) -> str:
        """This peer's name in the run."""
        return self._runtime.peer_id

    @property
    def rank(self) -> int:
        """Position in the ring order; valid in this generation only."""
        return self._view.ring_order.index(self._runtime.peer_id)

    @property
    def world_size(self) -> int:
        """Number of members of this group."""
        return len(self._view.ring_order)

    @property
    def generation(self) -> int:
        """Number of the membership of this group."""
        return self._view.generation

    @property
    def global_world_size(self) -> int:
        """Number of members of all groups."""
        return self._view.counts.global_world_size

    @property
    def group_count(self) -> int:
        """Number of groups that have members."""
        return self._view.counts.group_count

    @property
    def largest_group_size(self) -> int:
        """Number of members of the largest group."""
        return self._view.counts.largest_group_size

    @property
    def pending_peers(self) -> int:
        """How many waited to be admitted as of the last call; the same on all members."""
        return self._view.counts.pending_peers

    # -- collectives --------------------------------------------------------------------------

    def admit(self, timeout_s: float | None = None) -> Membership:
        """Let waiting peers in. A collective over all groups; cheap when nobody waits.

        Returns when every member of every group has called it, and the new ring is up.

        Raises:
            CallTimeout: some member's `timeout_s` passed; names who was missing.
            MismatchError: the members are not at the same place of the program.
        """
        check_timeout(timeout_s)
        self._run(AdmitCall(timeout_s=timeout_s))
        view = self._view
        return Membership(
            generation=view.generation,
            rank=self.rank,
            world_size=len(view.ring_order),
            ring_order=view.ring_order,
            joined=view.joined,
            pending_peers=view.counts.pending_peers,
        )

    def all_reduce(
        self,
        array: NDArray[Any],
        op: str | ReduceOp = "sum",
        *,
        out: NDArray[Any] | None = None,
        codec: str = "raw",
        tag: str | None = None,
        on_loss: str = "retry",
        timeout_s: float | None = None,
    ) -> ReduceInfo:
        """Reduce `array` element by element over all members; all end with the same bits.

        A collective: every member of the group calls it with the same dtype, element count
        and options, in the same order (or the same `tag`).

        Args:
            array: any shape, C-contiguous, native byte order; (u)int8 to 64, float16,
                bfloat16, float32, float64. Without `out` it is written, in place, but only
                when the operation is committed. The call owns it until it returns.
            op: "sum", "avg" (divides by the number of contributors, at the end; floats
                only), "prod", "min", "max". float16 and bfloat16 are accumulated in float32.
            out: like `array`, no memory in common with it; saves the copy that the in-place
                form needs. Undefined after an error.
            codec: "raw". Others are refused in this version.
            tag: operations of one tag are numbered by themselves.
            on_loss: "retry": run it again among the survivors, inside the call; "raise".
            timeout_s: for the whole operation, counted on this peer; fails it for all.

        Returns:
            World size, contributors, attempts, bytes and duration.

        Raises:
            CollectiveAborted: a member was lost and `on_loss="raise"` (call again), or fewer
                than `min_world_size` are left (call `admit`). `array` is as before.
            CallTimeout: some member's `timeout_s` passed; names who was missing.
            MismatchError: the members called different things; both are named.
            EvictedError, CoordinatorLost: this communicator is closed; connect again.
            TypeError, ValueError: an argument is refused; nothing was sent.
        """
        reduce_op = parse_op(op)
        check_timeout(timeout_s)
        own = flat_view(array, "array", writable=out is None)
        check_op(reduce_op, own.dtype)
        target, is_in_place = own, True
        if out is not None:
            target, is_in_place = flat_view(out, "out", writable=True), False
            check_out(array, out)
        if codec != "raw":
            raise ValueError(f'codec {codec!r} is not available in this version, only "raw" is')
        check_tag(tag)
        signature = Signature(
            kind=CollectiveKind.ALL_REDUCE,
            op=reduce_op,
            dtype=dtype_name(own.dtype),
            element_count=own.size,
            codec=codec,
            on_loss=parse_on_loss(on_loss),
        )
        call = ReduceCall(
            signature=signature,
            tag=tag,
            timeout_s=timeout_s,
            own=own,
            target=target,
            is_in_place=is_in_place,
        )
        return self._info(self._run(call))

    def barrier(self, timeout_s: float | None = None) -> None:
        """Return when every member of the group has called it.

        Raises:
            CallTimeout: some member's `timeout_s` passed; names who was missing.
            MismatchError: the members called different things.
        """
        check_timeout(timeout_s)
        signature = Signature(kind=CollectiveKind.BARRIER)
        self._run(ReduceCall(signature=signature, timeout_s=timeout_s))

    def sync_state(
        self, state: SharedState, strategy: str = "popular", timeout_s: float | None = None
    ) -> SyncInfo:
        """Make a shared state equal, bit by bit, on all members of the group.

        The content that most members hold wins, among those that took part in the last sync
        of this run and are at its revision or one more; peers that differ fetch it. In a new
        run the highest revision wins. Set `state.revision` one higher before you sync a
        content that has changed; a receiver's is set for it.

        Args:
            state: the same names, dtypes and shapes on all members. Written only when the
                whole elected content is here and verified.
            strategy: "popular"; "send_only" (never written: an error if another content is
                elected); "receive_only" (this content is not a candidate).
            timeout_s: for the whole operation, counted on this peer; fails it for all.

        Raises:
            StateError: no content can be elected, or no holder could give it; says why.
            CallTimeout, MismatchError, EvictedError, CoordinatorLost: as in `all_reduce`.
        """
        check_timeout(timeout_s)
        if not isinstance(state, SharedState):
            raise TypeError(f"state is a SharedState, not a {type(state).__name__}")
        strategies = {s.value: s for s in Strategy}
        if strategy not in strategies:
            raise ValueError(f"strategy is one of {sorted(strategies)}, not {strategy!r}")
        if frozen := [n for n, array in state.arrays.items() if not array.flags.writeable]:
            raise ValueError(f"array {frozen[0]!r} of the state has become read-only")
        signature = Signature(kind=CollectiveKind.SYNC_STATE, layout=state.layout())
        call = SyncCall(
            signature=signature,
            state=state,
            digest=state.digest(),
            strategy=strategies[strategy],
            timeout_s=timeout_s,
        )
        self._run(call)
        return SyncInfo(
            revision=call.revision,
            received_bytes=call.received_bytes,
            sent_bytes=call.sent_bytes,
            sources=tuple(call.sources),
            duration_s=call.duration_s,
        )

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the run in an orderly way. Later calls raise `ClosedError`."""
        self._finalizer()

    def __enter__(self) -> Self:
        """Leave at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave, whatever happened."""
        self.close()

    def __repr__(self) -> str:
        """Say who this is and how large the ring."""
        return f"<Communicator {self.peer_id}, rank {self.rank} of {self.world_size}>"

    # -- inside -------------------------------------------------------------------------------

    def _run(self, call: PendingCall) -> PendingCall:
        """Hand a call over and wait for its end; an interrupt ends it for all members."""
        if os.getpid() != self._pid:
            raise ClosedError("this is a forked process: connect again in it")
        if not self._busy.acquire(blocking=False):
            raise RinghaulError("another thread is in a call of this communicator: one at a time")
        try:
            try:
                self._runtime.submit(call)
                call.ended.wait()
            except BaseException as error:
                self._interrupt(call, f"{type(error).__name__} in the caller")
                raise
            if call.view is not None:
                self._view = call.view
            if call.error is not None:
                raise call.error
            return call
        finally:
            self._busy.release()

    def _interrupt(self, call: PendingCall, reason: str) -> None:
        """The caller was interrupted: wait for the verdict, so that its memory is its own."""
        try:
            self._runtime.give_up(call, reason)
            call.ended.wait()
            if call.view is not None:
                self._view = call.view
        except BaseException:
            self._runtime.abandon()  # interrupted again: leave without goodbye
            self._runtime.close(wait_s=1.0)
            raise

    def _info(self, call: PendingCall) -> ReduceInfo:
        assert call.view is not None
        return ReduceInfo(
            world_size=len(call.view.ring_order),
            contributors=call.view.ring_order,
            attempts=call.attempts,
            duration_s=call.duration_s,
            sent_bytes=call.sent_bytes,
            received_bytes=call.received_bytes,
        )


def _close(runtime: PeerRuntime, pid: int) -> None:
    if os.getpid() == pid:
        runtime.close()
