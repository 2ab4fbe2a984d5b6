"""What the blocking and the async communicator have in common: facts, turns, outcomes.

Decides who may call when, which view of the membership is shown, and what a call that has
ended means for its caller. Waits for nothing.
"""

import os
import threading
import weakref
from collections.abc import Collection

from ringhaul.core.peer.steps import View
from ringhaul.errors import ClosedError, RinghaulError
from ringhaul.io.calls import PendingCall, ReduceCall
from ringhaul.io.peer_runtime import PeerRuntime
from ringhaul.many import Batch, ParcelBuffers
from ringhaul.memory import MemoryInUse
from ringhaul.results import Membership, ReduceInfo
from ringhaul.state.shared import SharedState


class Member:
    """A member of a run: its view of the membership, and the calls it has handed over."""

    def __init__(self, runtime: PeerRuntime) -> None:
        assert runtime.view is not None
        self._runtime = runtime
        self._view: View = runtime.view
        self._view_lock = threading.Lock()
        self._busy = threading.Lock()
        self._memory = MemoryInUse()
        self._buffers = ParcelBuffers()
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

    def __repr__(self) -> str:
        """Say who this is and how large the ring."""
        return f"<{type(self).__name__} {self.peer_id}, rank {self.rank} of {self.world_size}>"

    # -- inside -------------------------------------------------------------------------------

    def _turn(self) -> threading.Lock:
        """What to hold during a call: an interrupt cannot part `with` from the lock.

        Of two threads that come here in the same instant the second may wait for the first.
        """
        self._check_process()
        if self._busy.locked():
            raise RinghaulError("another call of this communicator is under way: one at a time")
        return self._busy

    def _begin(self, call: ReduceCall) -> None:
        """Hand over an operation that nobody waits for yet."""
        with self._turn():
            try:
                self._memory.lend(call)
                self._runtime.submit(call)
            except BaseException as error:
                if call.let_go is not None:  # not refused: an interrupt
                    self._withdraw(call, f"{type(error).__name__} in the caller")
                raise

    def _refuse_in_use(self, state: SharedState, apart: Collection[str]) -> None:
        """Refuse a state of which an operation in flight owns a part that is compared."""
        compared = [array for name, array in state.arrays.items() if name not in apart]
        self._memory.refuse_overlap_of(compared)

    def _withdraw(self, call: PendingCall, reason: str) -> None:
        """The caller was interrupted while it handed a call over, and has nothing to wait with."""
        self._runtime.give_up(call, reason)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ClosedError("this is a forked process: connect again in it")

    def _show(self, view: View | None) -> None:
        """Show what a verdict names, unless that of a newer one is shown."""
        if view is not None:
            with self._view_lock:
                if view.index > self._view.index:
                    self._view = view

    def _settle_batch(self, batch: Batch) -> list[ReduceInfo]:
        """An `all_reduce_many` has ended: show its newest view, raise its first error."""
        self._show(batch.view)
        if (error := batch.error()) is not None:
            raise error
        if not batch.infos:  # nothing was handed over that could have been refused
            self._runtime.check_open()
        return [info for info in batch.infos if info is not None]

    def _membership(self) -> Membership:
        """What `admit` returns."""
        view = self._view
        return Membership(
            generation=view.generation,
            rank=view.ring_order.index(self._runtime.peer_id),
            world_size=len(view.ring_order),
            ring_order=view.ring_order,
            joined=view.joined,
            pending_peers=view.counts.pending_peers,
        )


def _close(runtime: PeerRuntime, pid: int) -> None:
    if os.getpid() == pid:
        runtime.close()
