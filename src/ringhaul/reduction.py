"""Prepares reductions, barriers and state syncs: arguments become calls, ended calls results.

Everything is checked here, before any byte is sent; nothing waits here.
"""

import time
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray

from ringhaul.arguments import (
    check_number,
    check_out,
    check_tag,
    check_text,
    check_timeout,
    parse_on_loss,
    parse_op,
)
from ringhaul.arrays import array_view, flattened
from ringhaul.ids import OnLoss, ReduceOp
from ringhaul.io.calls import PendingCall, ReduceCall, SyncCall
from ringhaul.io.hashing import take_content
from ringhaul.limits import UPLOAD_BYTES_PER_S_MIN
from ringhaul.quant import Codec, ErrorFeedback, ErrorMeter, check_codec, find_codec
from ringhaul.results import MeasuredError, ReduceInfo, SyncInfo
from ringhaul.ring.reduce import check_op, dtype_name
from ringhaul.state.manifest import pack_manifest
from ringhaul.state.shared import SharedState
from ringhaul.wire.records import CollectiveKind, Signature, StateReport, Strategy


def prepare_all_reduce(
    array: object,
    op: str | ReduceOp,
    *,
    out: object | None,
    codec: str | Codec,
    tag: str | None,
    on_loss: str,
    timeout_s: float | None,
    measure_error: bool,
) -> ReduceCall:
    """Arguments as of `Communicator.all_reduce`; raises TypeError or ValueError."""
    reduce_op = parse_op(op)
    check_timeout(timeout_s)
    shaped = array_view(array, "array", writable=out is None)
    own = target = flattened(shaped)
    check_op(reduce_op, own.dtype)
    if out is not None:
        shaped_out = array_view(out, "out", writable=True)
        check_out(shaped, shaped_out)
        target = flattened(shaped_out)
    check_tag(tag)
    packing = parse_codec(codec, reduce_op, own, tag)
    signature = _all_reduce_signature(
        reduce_op, dtype_name(own.dtype), own.size, packing.name, parse_on_loss(on_loss)
    )
    return ReduceCall(
        signature=signature,
        codec=packing,
        tag=tag,
        timeout_s=timeout_s,
        own=own,
        target=target,
        is_in_place=out is None,
        meter=ErrorMeter() if measure_error else None,
    )


@lru_cache(maxsize=1024)  # training loops reduce the same arrays again and again
def _all_reduce_signature(
    op: ReduceOp, dtype: str, element_count: int, codec: str, on_loss: OnLoss
) -> Signature:
    return Signature(
        kind=CollectiveKind.ALL_REDUCE,
        op=op,
        dtype=dtype,
        element_count=element_count,
        codec=codec,
        on_loss=on_loss,
    )


def parse_codec(codec: str | Codec, op: ReduceOp, own: NDArray[Any], tag: str | None) -> Codec:
    """The codec of a name, or the one itself; refused if it cannot do what is asked."""
    found = find_codec(codec)
    check_codec(found, op, own.dtype)
    if isinstance(found, ErrorFeedback):
        found.check(tag, own.size, own.dtype)
    return found


def reduce_info(call: PendingCall) -> ReduceInfo:
    """How a call was committed."""
    assert call.view is not None
    meter = call.meter if isinstance(call, ReduceCall) else None
    return ReduceInfo(
        world_size=len(call.view.ring_order),
        contributors=call.view.ring_order,
        attempts=call.attempts,
        duration_s=call.duration_s,
        sent_bytes=call.sent_bytes,
        received_bytes=call.received_bytes,
        compression=call.compression,
        codec_error=None if meter is None else MeasuredError(meter.largest, meter.rms),
    )


def prepare_barrier(timeout_s: float | None) -> ReduceCall:
    """Arguments as of `Communicator.barrier`."""
    check_timeout(timeout_s)
    return ReduceCall(signature=Signature(kind=CollectiveKind.BARRIER), timeout_s=timeout_s)


def check_sync_state(
    state: SharedState,
    strategy: str,
    timeout_s: float | None,
    allow_differences: Collection[str],
    upload_bytes_per_s: float | None,
) -> Strategy:
    """Arguments as of `Communicator.sync_state`; raises TypeError or ValueError."""
    check_timeout(timeout_s)
    if not isinstance(state, SharedState):
        raise TypeError(f"state is a SharedState, not a {type(state).__name__}")
    try:
        chosen = Strategy(strategy)
    except ValueError:
        names = ", ".join(repr(known.value) for known in Strategy)
        raise ValueError(f"strategy is one of {names}, not {strategy!r:.80}") from None
    if isinstance(allow_differences, (str, bytes)) or not isinstance(allow_differences, Collection):
        raise TypeError(f"allow_differences is a set of names, not {allow_differences!r:.80}")
    for name in allow_differences:
        check_text(name, "a name of allow_differences")
    if unknown := sorted(set(allow_differences) - set(state.arrays)):
        raise ValueError(f"allow_differences names {unknown[0]!r}, which is no array of the state")
    if frozen := [n for n, array in state.arrays.items() if not array.flags.writeable]:
        raise ValueError(f"array {frozen[0]!r} of the state has become read-only")
    check_number(upload_bytes_per_s, "upload_bytes_per_s")
    if upload_bytes_per_s is not None and not upload_bytes_per_s >= UPLOAD_BYTES_PER_S_MIN:
        raise ValueError(
            f"upload_bytes_per_s is {upload_bytes_per_s}; at least {UPLOAD_BYTES_PER_S_MIN} let "
            "every requester see that this peer lives"
        )
    return chosen


def prepare_sync_state(
    state: SharedState,
    strategy: Strategy,
    timeout_s: float | None,
    allow_differences: Collection[str],
    upload_bytes_per_s: float | None,
) -> SyncCall:
    """Hash the state: takes as long as reading its memory once."""
    began_at = time.perf_counter()
    apart = frozenset(allow_differences)
    content = take_content(state, apart)
    report = StateReport(
        revision=state.revision,
        digest=content.digest,
        strategy=strategy,
        manifest=pack_manifest(state.arrays, apart),
    )
    call = SyncCall(
        signature=Signature(kind=CollectiveKind.SYNC_STATE, layout=state.layout(apart)),
        state=state,
        report=report,
        content=content,
        timeout_s=timeout_s,
        upload_bytes_per_s=upload_bytes_per_s,
    )
    call.began_at = began_at
    return call


def sync_info(call: SyncCall) -> SyncInfo:
    """How a shared state became equal."""
    progress = call.progress
    by_source = {peer: count for peer, count in sorted(progress.by_source.items()) if count}
    return SyncInfo(
        revision=call.revision,
        received_bytes=progress.received_bytes,
        sent_bytes=call.sent_bytes,
        sources=tuple(by_source),
        duration_s=call.duration_s,
        received_blocks=progress.block_count,
        bytes_by_source=by_source,
    )
