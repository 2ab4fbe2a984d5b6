"""`broadcast`, `all_gather`, `reduce_scatter`: from what users pass to a call that can be made.

Checks arguments before any byte is sent. Each `prepare_*` makes a call that may be waited for
or not; it decides nothing about threads.
"""

from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from ringhaul.arguments import (
    check_out,
    check_tag,
    check_timeout,
    parse_integer,
    parse_on_loss,
    parse_op,
)
from ringhaul.arrays import array_view, flat_view, in_kind_of
from ringhaul.blocking import BlockingMember
from ringhaul.core.peer.steps import View
from ringhaul.ids import PeerId, ReduceOp
from ringhaul.io.calls import BroadcastCall, GatherCall, ScatterCall
from ringhaul.reduction import reduce_info
from ringhaul.results import ReduceInfo
from ringhaul.ring.reduce import check_op, dtype_name
from ringhaul.wire.records import CollectiveKind, Signature


def resolve_root(root: SupportsIndex, ring_order: Sequence[PeerId]) -> PeerId:
    """Who has the rank `root` now: ranks change with a loss, what was called does not."""
    rank = parse_integer(root, "root")
    if not 0 <= rank < len(ring_order):
        raise ValueError(
            f"root is a rank from 0 to {len(ring_order) - 1}, not {rank}: the ring is "
            f"{', '.join(ring_order)}"
        )
    return ring_order[rank]


def prepare_broadcast(
    view: View,
    own_id: str,
    array: object,
    root: SupportsIndex,
    *,
    out: object | None,
    tag: str | None,
    on_loss: str,
    timeout_s: float | None,
) -> BroadcastCall:
    """Check the arguments of `broadcast`; `view` is what the caller sees of the ring."""
    check_timeout(timeout_s)
    check_tag(tag)
    root_id = resolve_root(root, view.ring_order)
    is_root = root_id == own_id
    own = flat_view(array, "array", writable=out is None and not is_root)
    target = own
    if out is not None:
        target = flat_view(out, "out", writable=True)
        check_out(array_view(array, "array", writable=False), array_view(out, "out", writable=True))
    signature = Signature(
        kind=CollectiveKind.BROADCAST,
        dtype=dtype_name(own.dtype),
        element_count=own.size,
        root=root_id,
        on_loss=parse_on_loss(on_loss),
    )
    return BroadcastCall(
        signature=signature,
        tag=tag,
        timeout_s=timeout_s,
        own=own,
        target=target,
        is_in_place=out is None,
        is_root=is_root,
    )


def prepare_all_gather(
    view: View,
    array: object,
    *,
    out: object | None,
    tag: str | None,
    on_loss: str,
    timeout_s: float | None,
) -> GatherCall:
    """Check the arguments of `all_gather`; `view` is what the caller sees of the ring."""
    check_timeout(timeout_s)
    check_tag(tag)
    rows = array_view(array, "array", writable=False)
    own = flat_view(array, "array", writable=False)
    given = None if out is None else np.asarray(array_view(out, "out", writable=True))
    if given is not None:  # plain: a matrix would stay of two dimensions
        _check_rows(rows, given, len(view.ring_order))
    signature = Signature(
        kind=CollectiveKind.ALL_GATHER,
        dtype=dtype_name(own.dtype),
        element_count=own.size,
        on_loss=parse_on_loss(on_loss),
    )
    return GatherCall(
        signature=signature,
        tag=tag,
        timeout_s=timeout_s,
        own=own,
        shape=rows.shape,
        out=given,
    )


def _check_rows(array: NDArray[Any], out: NDArray[Any], world_size: int) -> None:
    if out.dtype != array.dtype or out.shape[1:] != array.shape or out.ndim == 0:
        raise ValueError(
            f"out has shape {out.shape} and dtype {out.dtype}, it needs rows like the array, of "
            f"shape {array.shape} and dtype {array.dtype}"
        )
    if out.shape[0] < world_size:
        raise ValueError(f"out has {out.shape[0]} rows, it needs one for each of {world_size}")
    if np.may_share_memory(array, out):
        raise ValueError("out shares memory with array: gather from a copy")


def prepare_reduce_scatter(
    view: View,
    array: object,
    op: str | ReduceOp,
    *,
    out: object | None,
    tag: str | None,
    on_loss: str,
    timeout_s: float | None,
) -> ScatterCall:
    """Check the arguments of `reduce_scatter`; `view` is what the caller sees of the ring."""
    reduce_op = parse_op(op)
    check_timeout(timeout_s)
    check_tag(tag)
    own = flat_view(array, "array", writable=False)
    check_op(reduce_op, own.dtype)
    given = None if out is None else array_view(out, "out", writable=True)
    if given is not None:
        _check_chunk(own, given, len(view.ring_order))
    signature = Signature(
        kind=CollectiveKind.REDUCE_SCATTER,
        op=reduce_op,
        dtype=dtype_name(own.dtype),
        element_count=own.size,
        on_loss=parse_on_loss(on_loss),
    )
    return ScatterCall(signature=signature, tag=tag, timeout_s=timeout_s, own=own, out=given)


def _check_chunk(own: NDArray[Any], out: NDArray[Any], world_size: int) -> None:
    needed = -(-own.size // world_size)
    if out.dtype != own.dtype or out.ndim != 1 or out.size < needed:
        raise ValueError(
            f"out has shape {out.shape} and dtype {out.dtype}, it needs one dimension, "
            f"{needed} elements at least, and dtype {own.dtype}"
        )
    if np.may_share_memory(own, out):
        raise ValueError("out shares memory with array: reduce to memory of its own")


class RingCollectives(BlockingMember):
    """The blocking forms."""

    def broadcast(
        self,
        array: object,
        root: SupportsIndex = 0,
        *,
        out: object | None = None,
        tag: str | None = None,
        on_loss: str = "retry",
        timeout_s: float | None = None,
    ) -> ReduceInfo:
        """Give all members the array of one of them, the root, bit by bit.

        A collective: every member of the group calls it with the same dtype, element count,
        root and options, in the same order (or the same `tag`).

        Args:
            array: as in `all_reduce`. The root's is only read. The others' is written, in
                place, but only when the operation is committed; with `out` it is not touched.
                The call owns it until it returns.
            root: the rank, as of this call, of the member whose array all get. It names a
                peer: if a loss shifts the ranks, the operation stays with that peer.
            out: like `array`, no memory in common with it; gets the result on all members,
                and saves the copy that the in-place form needs. Undefined after an error.
            tag: operations of one tag are numbered by themselves.
            on_loss: "retry": if another than the root is lost, run it again among the
                survivors, inside the call; "raise".
            timeout_s: for the whole operation, counted on this peer; fails it for all.

        Returns:
            World size, contributors (all members of the ring), attempts, bytes and duration.

        Raises:
            CollectiveAborted: the root was lost, whatever `on_loss` is; else as in
                `all_reduce`. `array` is as before. Choose another root and call again.
            CallTimeout, MismatchError, EvictedError, CoordinatorLost: as in `all_reduce`.
            TypeError, ValueError: an argument is refused; nothing was sent.
        """
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
        self._run(call)
        return reduce_info(call)

    def all_gather(
        self,
        array: object,
        *,
        out: object | None = None,
        tag: str | None = None,
        on_loss: str = "retry",
        timeout_s: float | None = None,
    ) -> Any:  # noqa: ANN401 - the caller's kind
        """Collect the arrays of all members, one row each; all end with the same bits.

        A collective: every member of the group calls it with the same dtype, element count
        and options, in the same order (or the same `tag`).

        Args:
            array: as in `all_reduce`; only read. The call owns it until it returns.
            out: at least `world_size` rows like `array`, no memory in common with it: memory
                that is used again saves time. Undefined after an error.
            tag: operations of one tag are numbered by themselves.
            on_loss: "retry": run it again among the survivors, inside the call; "raise".
            timeout_s: for the whole operation, counted on this peer; fails it for all.

        Returns:
            Shape (`world_size`, *`array.shape`), both as after the call: row r is the array
            of rank r. New memory, or the first rows of `out`.

        Raises:
            CollectiveAborted, CallTimeout, MismatchError, EvictedError, CoordinatorLost: as
                in `all_reduce`.
            TypeError, ValueError: an argument is refused; nothing was sent.
        """
        call = prepare_all_gather(
            self._view, array, out=out, tag=tag, on_loss=on_loss, timeout_s=timeout_s
        )
        self._run(call)
        assert call.value is not None
        return in_kind_of(array, call.value)

    def reduce_scatter(
        self,
        array: object,
        op: str | ReduceOp = "sum",
        *,
        out: object | None = None,
        tag: str | None = None,
        on_loss: str = "retry",
        timeout_s: float | None = None,
    ) -> Any:  # noqa: ANN401 - the caller's kind
        """Reduce `array` over all members, and give each member its chunk of the result.

        Half of an `all_reduce`, with the same bits. A collective: every member of the group
        calls it with the same dtype, element count and options, in the same order (or the
        same `tag`).

        Args:
            array: as in `all_reduce`; only read. The call owns it until it returns.
            op: as in `all_reduce`.
            out: of one dimension, the dtype of `array`, no memory in common with it, and at
                least `array.size / world_size` elements, rounded up: memory that is used again
                saves time. Undefined after an error.
            tag: operations of one tag are numbered by themselves.
            on_loss: "retry": run it again among the survivors, inside the call; "raise".
            timeout_s: for the whole operation, counted on this peer; fails it for all.

        Returns:
            `np.array_split(reduced.ravel(), world_size)[rank]`, `world_size` and `rank` as
            after the call: new memory, or the head of `out`. After a loss chunks are longer;
            one that does not fit into `out` is in new memory, so use what is returned (an
            `out` of `array.size` elements suffices always). If a member was lost that had
            finished, so that the operation was committed with it, nobody has its chunk.

        Raises:
            CollectiveAborted, CallTimeout, MismatchError, EvictedError, CoordinatorLost: as
                in `all_reduce`.
            TypeError, ValueError: an argument is refused; nothing was sent.
        """
        call = prepare_reduce_scatter(
            self._view, array, op, out=out, tag=tag, on_loss=on_loss, timeout_s=timeout_s
        )
        self._run(call)
        assert call.value is not None
        return in_kind_of(array, call.value)
