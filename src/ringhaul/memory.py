"""Which memory of the caller is owned by operations in flight.

Decides whether one more may begin: two may read the same array, but none may write what
another one reads or writes.
"""

import threading
from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from ringhaul.arrays import span_of
from ringhaul.errors import RinghaulError
from ringhaul.io.calls import PendingCall

#: Asynchronous operations that one peer may have in flight; with its neighbours' it stays
#: below what the coordinator keeps open for a group.
WORKS_IN_FLIGHT_MAX = 4096

#: First address, end, and whether it is written.
Span = tuple[int, int, bool]


class MemoryInUse:
    """The arrays of asynchronous operations, from their call to their end. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._longest_bytes = 0
        self._work_count = 0

    def refuse_overlap(self, call: PendingCall) -> None:
        """Refuse a blocking call that needs memory of an operation in flight."""
        if self._spans:
            spans = _spans_of(call)
            with self._lock:
                self._check(spans)

    def refuse_overlap_of(self, written: Iterable[NDArray[Any]]) -> None:
        """The same for arrays that will be written."""
        if self._spans:
            spans = [(*span_of(view), True) for view in written if view.size]
            with self._lock:
                self._check(spans)

    def lend(self, call: PendingCall) -> None:
        """An operation begins; its memory is free again when the call ends.

        Raises:
            ValueError: another one in flight has part of its memory.
            RinghaulError: too many are in flight.
        """
        spans = _spans_of(call)
        longest = max((stop - start for start, stop, _ in spans), default=0)

        def take_back() -> None:
            self._take_back(spans)

        with self._lock:
            if self._work_count >= WORKS_IN_FLIGHT_MAX:
                raise RinghaulError(
                    f"{WORKS_IN_FLIGHT_MAX} operations are in flight: wait for some of them first"
                )
            self._check(spans)
            merged = self._spans.copy()
            for span in spans:
                insort(merged, span)
            longest = max(self._longest_bytes, longest)
            # No call stands between these: an interrupt finds all of it done, or nothing.
            self._spans = merged
            self._longest_bytes = longest
            self._work_count += 1
            call.let_go = take_back

    def _take_back(self, spans: list[Span]) -> None:
        with self._lock:
            self._work_count -= 1
            for span in spans:
                del self._spans[bisect_left(self._spans, span)]
            if not self._spans:
                self._longest_bytes = 0

    def _check(self, spans: list[Span]) -> None:
        for start, stop, is_written in spans:
            place = bisect_left(self._spans, (start - self._longest_bytes,))
            while place < len(self._spans) and self._spans[place][0] < stop:
                if self._spans[place][1] > start and (is_written or self._spans[place][2]):
                    raise ValueError(
                        "an operation in flight owns this memory, or part of it: wait for its "
                        "Work first, or pass another array"
                    )
                place += 1


def _spans_of(call: PendingCall) -> list[Span]:
    return [(*span_of(array), is_written) for array, is_written in call.memory() if array.size]
