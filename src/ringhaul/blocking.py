"""How the blocking communicator waits: for verdicts, whatever interrupts it.

Decides what an interrupt means: it ends the call on all members, and the memory is the
caller's only once the verdict is here.
"""

from collections.abc import Iterator

from ringhaul.io.calls import PendingCall, SyncCall
from ringhaul.io.signals import Signal
from ringhaul.many import Batch
from ringhaul.member import Member
from ringhaul.progress import wait_showing
from ringhaul.results import ReduceInfo


class BlockingMember(Member):
    """A member whose caller's thread waits for each call."""

    def _run(self, call: PendingCall) -> None:
        """Hand a call over and wait for its end; an interrupt ends it for all members."""
        with self._turn():
            self._memory.refuse_overlap(call)
            try:
                self._runtime.submit(call)
                if isinstance(call, SyncCall):
                    wait_showing(call.ended, call.progress)
                else:
                    call.ended.wait()
                self._show(call.view)
            except BaseException as error:
                self._withdraw(call, f"{type(error).__name__} in the caller")
                raise
            if call.error is not None:
                raise call.error

    def _withdraw(self, call: PendingCall, reason: str) -> None:
        """The caller was interrupted: wait for the verdict, so that its memory is its own."""
        try:
            self._runtime.give_up(call, reason)
            call.ended.wait()
            self._show(call.view)
        except BaseException:
            self._abandon()
            raise

    def _run_batch(self, batch: Batch) -> list[ReduceInfo]:
        """Drive an `all_reduce_many`; an interrupt ends it for all members."""
        with self._turn():
            self._memory.refuse_overlap_of(batch.views)
            try:
                _wait_each(batch.run(self._runtime))
            except BaseException as error:
                self._interrupt_batch(batch, f"{type(error).__name__} in the caller")
                done = sum(info is not None for info in batch.infos)
                error.add_note(f"all_reduce_many: {done} of {len(batch.infos)} arrays are reduced")
                raise
            return self._settle_batch(batch)

    def _interrupt_batch(self, batch: Batch, reason: str) -> None:
        try:
            _wait_each(batch.wind_up(self._runtime, reason))
            self._show(batch.view)
        except BaseException:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Interrupted again, while waiting for a verdict: leave without goodbye."""
        self._runtime.abandon()
        self._runtime.close(wait_s=1.0)


def _wait_each(signals: Iterator[Signal]) -> None:
    for signal in signals:
        signal.wait()
