"""`Work`: an operation in flight, to be waited for."""

import copy
import os
from collections.abc import Callable

from ringhaul.arguments import check_timeout
from ringhaul.core.peer.steps import View
from ringhaul.errors import CallTimeout, ClosedError
from ringhaul.io.calls import ReduceCall
from ringhaul.reduction import reduce_info
from ringhaul.results import ReduceInfo


class Work:
    """An operation in flight. Made by `Communicator.all_reduce_async`.

    It owns the array, and `out`, until `done`: do not read or write them before. Works may be
    waited for by any thread, in any order, by several at once, and again. A Work keeps its
    arrays and its communicator alive; one that is dropped goes on all the same.
    """

    def __init__(self, call: ReduceCall, show: Callable[[View | None], None]) -> None:
        self._call = call
        self._show = show
        self._pid = os.getpid()

    def done(self) -> bool:
        """Has it ended, well or not? `wait` returns or raises at once then."""
        return self._call.ended.is_set()

    def wait(self, timeout_s: float | None = None) -> ReduceInfo:
        """Wait for the verdict.

        The communicator's properties then show what this verdict names, unless they show
        that of a later one already: they never go back, in whatever order works are waited
        for. So they are the same on all members that have waited for the same works.

        An interrupt (Ctrl-C) ends the wait only, as `timeout_s` does: the operation goes on
        and owns its memory still. Wait again, or close the communicator.

        Args:
            timeout_s: for this wait. The operation has a `timeout_s` of its own.

        Raises:
            CallTimeout: not done after `timeout_s`, and `done()` is False; or, as for all
                other errors of `all_reduce`, the verdict for all members.
            ClosedError: the communicator was closed meanwhile, or at interpreter exit. The
                array is as before the call, or reduced if the verdict came before.
        """
        check_timeout(timeout_s)
        if os.getpid() != self._pid and not self.done():
            raise ClosedError("this is a forked process: the operation is its parent's")
        if not self._call.ended.wait(timeout_s):
            raise still_in_flight(self._call, timeout_s)
        return settle(self._call, self._show)

    def __repr__(self) -> str:
        """Say what it is and how it stands."""
        state = "in flight"
        if self.done():
            state = "done" if self._call.error is None else repr(self._call.error)
        return f"<Work {self._call.signature}, {state}>"


def settle(call: ReduceCall, show: Callable[[View | None], None]) -> ReduceInfo:
    """What every wait for an ended operation returns, or raises: each an error of its own."""
    show(call.view)
    if call.error is not None:
        error = copy.copy(call.error)
        error.__cause__ = call.error.__cause__
        raise error
    return reduce_info(call)


def still_in_flight(call: ReduceCall, timeout_s: float | None) -> CallTimeout:
    """A wait has ended, its operation has not."""
    text = f"{call.signature} is not done after {timeout_s:g} s of waiting; it goes on: wait again"
    return CallTimeout(text, tag=call.tag, seconds=timeout_s)
