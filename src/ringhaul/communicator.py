"""What users call: the blocking `Communicator`.

Arguments are checked before any byte is sent; then calls are handed to the I/O thread, and
waited for.
"""

from collections.abc import Collection, Iterable
from types import TracebackType
from typing import Self

from ringhaul.arguments import check_timeout
from ringhaul.collectives import RingCollectives
from ringhaul.ids import ReduceOp
from ringhaul.io.calls import AdmitCall
from ringhaul.many import Batch
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
from ringhaul.work import Work


class Communicator(RingCollectives):
    """A member of a run. Made by `connect`; one thread at a time may call it.

    Its properties change only when a call or `Work.wait` returns or raises, to what the
    verdict names; if several operations are in flight, to the newest of the verdicts waited
    for. Closed by `close`, at the end of a `with` block, when it is garbage-collected, and at
    exit. A `Work` keeps it alive; if neither is left, what is in flight ends without a word.
    """

    # -- collectives --------------------------------------------------------------------------

    def admit(self, timeout_s: float | None = None) -> Membership:
        """Let waiting peers in. A collective over all groups; cheap when nobody waits.

        Returns when every member of every group has called it, and the new ring is up. It may
        be called with `Work`s in flight: it takes effect after all of them.

        Raises:
            CallTimeout: some member's `timeout_s` passed; names who was missing.
            MismatchError: the members are not at the same place of the program.
        """
        check_timeout(timeout_s)
        self._run(AdmitCall(timeout_s=timeout_s))
        return self._membership()

    def all_reduce(
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
        """Reduce `array` element by element over all members; all end with the same bits.

        A collective: every member of the group calls it with the same dtype, element count
        and options, in the same order (or the same `tag`).

        Args:
            array: NumPy, a torch CPU tensor, or anything with the buffer protocol or DLPack
                on the CPU; never copied. Any shape, C-contiguous, native byte order; (u)int8
                to 64, float16, bfloat16, float32, float64. Without `out` it is written, in
                place, but only when the operation is committed. The call owns it until it
                returns.
            op: "sum", "avg" (divides by the number of contributors, at the end; floats
                only), "prod", "min", "max". float16 and bfloat16 are accumulated in float32.
            out: like `array`, no memory in common with it; saves the copy that the in-place
                form needs. Undefined after an error.
            codec: how segments are packed on the wire: "raw"; "fp16", "bf16", "uint8",
                "uint8-zp", "uint8-fine", "uint4", "uint4-fine" (lossy, their errors are in
                `ringhaul.quant`), each also with "+zstd"; or a `Codec`, such as
                `ErrorFeedback("uint4")`. All members end with the same bits whatever it is.
            tag: operations of one tag are numbered by themselves.
            on_loss: "retry": run it again among the survivors, inside the call; "raise".
            timeout_s: for the whole operation, counted on this peer; fails it for all.
            measure_error: measure what this peer's encodings lose (`ReduceInfo.codec_error`):
                encoding then takes about three times as long. Members need not agree about it.

        Returns:
            World size, contributors, attempts, bytes, compression, duration, codec error.

        Raises:
            CollectiveAborted: a member was lost and `on_loss="raise"` (call again), or fewer
                than `min_world_size` are left (call `admit`). `array` is as before.
            CallTimeout: some member's `timeout_s` passed; names who was missing.
            MismatchError: the members called different things; both are named.
            CodecError: a lossy codec cannot carry a value of some member (NaN); says whose.
            EvictedError, CoordinatorLost: this communicator is closed; connect again.
            TypeError, ValueError: an argument is refused, or an operation in flight owns part
                of this memory; nothing was sent.

        An interrupt (Ctrl-C) aborts the operation on all members, and waits for that.
        """
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
        self._run(call)
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
        """Begin an `all_reduce`, whose arguments it takes, and return at once.

        Any number may be in flight (up to 4096), beside blocking calls. Members post them in
        the same order, or those of different `tag`s in any order. The operation owns `array`
        and `out` until it is done; several may read the same array, with different `out`.

        Returns:
            What to wait for. All errors but the following are raised by its `wait`.

        Raises:
            TypeError, ValueError: an argument is refused, or another operation in flight owns
                part of this memory; nothing was sent.
            RinghaulError: too many operations are in flight; nothing was sent.
        """
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
        return Work(call, self._show)

    def all_reduce_many(
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
        """Reduce each of many arrays in place, several operations at a time.

        Small arrays of one dtype are packed and travel together, so that a thousand of 4 KiB
        take little longer than one of 4 MiB. All members pass the same number of arrays, of
        the same dtypes and sizes in the same order; that is checked for the whole list first.

        Not atomic: after an error some arrays are reduced, on all members the same ones, and
        the others are as before. `infos` of the error says which: it has a `ReduceInfo` for
        each array that is reduced, else None. After an error no more operations are begun,
        and those in flight have ended when it is raised. Call again with the arrays that have
        None, and any others.

        Args:
            arrays: as for `all_reduce`, all writable, no two with memory in common. The call
                owns them until it returns or raises.
            op: as for `all_reduce`.
            codec: as for `all_reduce`. Only "raw" packs: others scale a block of elements by
                its largest, and one array shall not spoil another.
            max_in_flight: operations at a time, 1 to 256.
            on_loss: as for `all_reduce`; "retry" runs only what was not committed again.
            timeout_s: for the whole call.
            measure_error: as for `all_reduce`.

        Returns:
            For each array how it was committed. Arrays that travelled together share one
            `ReduceInfo`, whose bytes are those of all of them.

        Raises:
            As for `all_reduce`: the error of the first operation that failed.

        An interrupt (Ctrl-C) aborts what is in flight on all members, and waits for that.
        """
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
        return self._run_batch(batch)

    def barrier(self, timeout_s: float | None = None) -> None:
        """Return when every member of the group has called it.

        Raises:
            CallTimeout: some member's `timeout_s` passed; names who was missing.
            MismatchError: the members called different things.
        """
        self._run(prepare_barrier(timeout_s))

    def sync_state(
        self,
        state: SharedState,
        strategy: str = "popular",
        timeout_s: float | None = None,
        *,
        allow_differences: Collection[str] = (),
        upload_bytes_per_s: float | None = None,
    ) -> SyncInfo:
        """Make a shared state equal, bit by bit, on all members of the group.

        The content that most members hold wins, among those that took part in the last sync
        of this run and are at its revision or one more; peers that differ fetch the blocks
        that differ, from all who have them. In a new run the highest revision wins. Set
        `state.revision` one higher before you sync a content that has changed; a receiver's
        is set for it.

        Args:
            state: the same names, dtypes and shapes on all members. Written only when the
                whole elected content is here and verified; the call owns it until it returns.
            strategy: "popular"; "send_only" (never written: an error if another content is
                elected); "receive_only" (this content is not a candidate).
            timeout_s: for the whole operation, counted on this peer; fails it for all.
            allow_differences: names of arrays that are each peer's own: not compared, never
                sent nor written. The same names on all members.
            upload_bytes_per_s: a bound on what this peer gives to others during the call,
                64 KiB/s or more; None: as fast as it goes.

        Raises:
            StateError: no content can be elected, or no holder could give it; says why. The
                arrays are as before.
            MismatchError: names, dtypes or shapes differ; says which entry, on whom.
            CallTimeout, EvictedError, CoordinatorLost: as in `all_reduce`.
        """
        chosen = check_sync_state(state, strategy, timeout_s, allow_differences, upload_bytes_per_s)
        self._refuse_in_use(state, allow_differences)  # before it is hashed
        call = prepare_sync_state(state, chosen, timeout_s, allow_differences, upload_bytes_per_s)
        self._run(call)
        return sync_info(call)

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
