"""Calls of the user in the I/O thread: their memory, their transfers, their results.

Does what the machine orders for each call; decides nothing about the protocol.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import trio

from ringhaul import compiled
from ringhaul.core.peer import steps
from ringhaul.core.peer.steps import Event
from ringhaul.errors import ClosedError, CodecError
from ringhaul.ids import CallId, ReduceOp
from ringhaul.io.buffers import BufferPool, describe_shortage
from ringhaul.io.calls import AdmitCall, CollectiveCall, PendingCall, ReduceCall, SyncCall
from ringhaul.io.coded_transfer import CodedTransfer
from ringhaul.io.packed_transfer import PackedTransfer
from ringhaul.io.plane import DataPlane
from ringhaul.io.ring_transfer import RingTransfer
from ringhaul.io.state_serve import StateServer
from ringhaul.io.sync_runner import SyncRunner
from ringhaul.quant import RAW, ErrorFeedback, ErrorMeter, SegmentCoder, ZstdCodec
from ringhaul.ring.casts import BFLOAT16, FLOAT16
from ringhaul.wire.coordinator_messages import Outcome

CoderKey = tuple[int, bool, ReduceOp, np.dtype[Any], int]
_CODERS_MAX = 16
_NARROW = (FLOAT16, BFLOAT16)
#: Calls of less are quick enough without compiled kernels, which take their seconds to be made.
_COMPILED_BYTES_MIN = 1 << 20


class CallRunner:
    """All open calls of one peer."""

    def __init__(self, step: Callable[[Event], None]) -> None:
        self._step = step
        self._calls: dict[CallId, PendingCall] = {}
        self._call_count = 0
        self._buffers = BufferPool()
        self._coders: OrderedDict[CoderKey, SegmentCoder] = OrderedDict()

    def __contains__(self, call: CallId) -> bool:
        """Is this call open?"""
        return call in self._calls

    def open(self, nursery: trio.Nursery, plane: DataPlane) -> None:
        """The I/O thread runs."""
        self._nursery = nursery
        self._plane = plane
        self.states = StateServer()
        self._syncs = SyncRunner(nursery, plane.neighbours, self.states, self._step)

    def release_all(self) -> None:
        """It is over: no stream holds a caller's memory after this."""
        for call in list(self._calls.values()):
            self._release(call)

    def end_all(self, error: BaseException | None) -> None:
        """The thread ends: wake all callers."""
        for call in list(self._calls.values()):
            call.end(error=error or ClosedError("the communicator was closed during the call"))
        self._calls.clear()

    def do(
        self,
        effect: steps.BeginTransfer
        | steps.DropTransfer
        | steps.FollowSyncPlan
        | steps.Complete
        | steps.Fail,
    ) -> None:
        """Do what the machine orders for one call."""
        call = self._calls[effect.call]
        match effect:
            case steps.BeginTransfer():
                assert isinstance(call, CollectiveCall)
                try:
                    self._begin_transfer(call, effect)
                except MemoryError as error:
                    detail = describe_shortage(error)
                    self._step(steps.CallGivenUp(call.id, Outcome.FAILED, detail))
            case steps.DropTransfer():
                self._release(call)
            case steps.FollowSyncPlan(plan=plan):
                assert isinstance(call, SyncCall)
                self._syncs.follow(call, plan)
            case steps.Complete():
                self._complete(call, effect)
            case steps.Fail():
                self._release(call)
                effect.error.wire_bytes = call.sent_bytes + call.received_bytes
                self._give_back(call)
                del self._calls[call.id]
                call.end(error=effect.error, view=effect.view)

    def on_submitted(self, call: PendingCall) -> None:
        """Take a call of the user: its number, and the machine's event."""
        self._call_count += 1
        call.id = CallId(self._call_count)
        self._calls[call.id] = call
        match call:
            case AdmitCall():
                self._step(steps.AdmitCalled(call.id, call.timeout_s))
            case CollectiveCall():
                event = steps.CollectiveCalled(
                    call=call.id,
                    tag=call.tag,
                    signature=call.signature,
                    timeout_s=call.timeout_s,
                    batch_index=call.batch_index,
                )
                self._step(event)
            case SyncCall():
                event = steps.CollectiveCalled(
                    call=call.id,
                    tag=None,
                    signature=call.signature,
                    state=call.report,
                    timeout_s=call.timeout_s,
                )
                self._step(event)
            case _:
                raise AssertionError(f"no such call: {call}")

    def _begin_transfer(self, call: CollectiveCall, begin: steps.BeginTransfer) -> None:
        assert call.own is not None
        facts: dict[str, Any] = {
            "call": call.id,
            "key": begin.key,
            "generation": begin.generation,
            "rank": begin.rank,
            "world_size": begin.world_size,
            "signature": call.signature,
            "own": call.own,
            "result": call.result_memory(begin.rank, begin.world_size, self._buffers),
            "root": begin.root,
        }
        is_coded = isinstance(call, ReduceCall) and call.codec is not RAW
        if call.own.nbytes >= _COMPILED_BYTES_MIN and (is_coded or call.own.dtype in _NARROW):
            compiled.start()
        if isinstance(call, ReduceCall) and call.codec is not RAW:
            try:
                call.transfer = self._packed(call, facts)
            except CodecError as error:
                self._step(steps.CallGivenUp(call.id, Outcome.UNFIT, str(error)))
                return
        else:
            call.transfer = RingTransfer(**facts)
        self._plane.begin(call.transfer)

    def _packed(self, call: ReduceCall, facts: dict[str, Any]) -> RingTransfer:
        """An attempt whose segments travel packed; CodecError: a user's codec has failed."""
        coder = self._coder_for(call, facts["world_size"])
        if coder.compressor is not None and coder.is_raw:
            return PackedTransfer(compressor=coder.compressor, **facts)
        feedback = call.reservation.begin() if call.reservation is not None else None
        meter = None if call.meter is None else ErrorMeter()  # of this attempt alone
        return CodedTransfer(coder=coder, feedback=feedback, meter=meter, **facts)

    def _coder_for(self, call: ReduceCall, world_size: int) -> SegmentCoder:
        """The coder of earlier calls of the kind: it has scratch, and knows what compression pays.

        All transfers run in this thread, and none holds a coder from one segment to the next.
        """
        assert call.own is not None
        assert call.signature.op is not None
        codec, op, dtype = call.codec, call.signature.op, call.own.dtype
        if isinstance(codec, ErrorFeedback):
            codec = codec.codec  # residuals are the caller's, to be kept or dropped
        inner = codec.inner if isinstance(codec, ZstdCodec) else codec
        # by identity, as a user's codec may have no hash; its coder keeps it alive
        key = (id(inner), codec is inner, op, dtype, world_size)
        coder = self._coders.get(key)
        if coder is None:
            coder = SegmentCoder(codec, op, dtype, world_size, clock=self._plane.reactor.clock)
            self._coders[key] = coder
            while len(self._coders) > _CODERS_MAX:
                self._coders.popitem(last=False)
        self._coders.move_to_end(key)
        if coder.compressor is not None:
            coder.compressor.link_bytes_per_s = self._plane.neighbours.outgoing_rate()
        return coder

    def _release(self, call: PendingCall) -> None:
        """Let go of everything that an attempt holds."""
        if isinstance(call, CollectiveCall) and call.transfer is not None:
            self._plane.release(call.transfer)
            call.sent_bytes += call.transfer.sent_bytes
            call.received_bytes += call.transfer.received_bytes
            call.transfer = None
        elif isinstance(call, SyncCall):
            self._syncs.release(call)

    def _give_back(self, call: PendingCall) -> None:
        if isinstance(call, CollectiveCall):
            call.give_back(self._buffers)

    def _complete(self, call: PendingCall, effect: steps.Complete) -> None:
        call.attempts = effect.attempts
        if isinstance(call, SyncCall):
            self._syncs.complete(call, lambda error: self._end(call, effect.view, error))
            return
        transfer = call.transfer if isinstance(call, CollectiveCall) else None
        self._release(call)
        if isinstance(call, CollectiveCall) and transfer is not None:
            call.commit(transfer)
        self._give_back(call)
        self._end(call, effect.view, None)

    def _end(self, call: PendingCall, view: steps.View, error: BaseException | None) -> None:
        del self._calls[call.id]
        call.end(view=view, error=error)
