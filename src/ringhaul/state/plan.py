"""Who gives which block: the plan of one requester, kept while its blocks arrive.

Decides what is asked of whom, and what is asked again. It sees no bytes and no sockets: `io`
tells it what happened, and asks what is next.

Holders have every block, fellow requesters what they have verified so far. Whoever asks the
holders asks for what no fellow has yet, beginning at a place of its own, so that requesters
have something to give each other. A source that is fast asks more often, and so gives more. At
the end, what a source holds back much longer than others need is asked of another one too.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

#: Blocks of one request, if they are small.
BLOCKS_PER_REQUEST_MAX = 256
#: Nothing is asked a second time before this; a burst of loss on a long path takes so long.
OVERDUE_S_MIN = 0.5
#: ... nor before it takes so many times as long as blocks usually do.
OVERDUE_TIMES = 4.0
_USUAL_WEIGHT = 0.2

Source = int


@dataclass(slots=True)
class _Source:
    """One connection to a holder or fellow, and what is under way on it: block -> when asked."""

    #: 1 for each block that it has and that is not asked of anybody; None for a holder.
    offers: bytearray | None
    has: bytearray | None
    under_way: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """Blocks to ask a source for, next to each other."""

    first: int
    count: int


class FetchPlan:
    """What is still to be fetched. Times are seconds of one monotonic clock."""

    def __init__(
        self,
        needed: Iterable[int],
        block_count: int,
        size: Callable[[int], int],
        *,
        request_bytes: int,
        start_share: float = 0.0,
    ) -> None:
        """Nothing is asked yet.

        Args:
            needed: numbers of the blocks to be fetched.
            block_count: of the whole content.
            size: bytes of a block.
            request_bytes: of one request at most, unless one block is larger.
            start_share: where to begin, 0 <= share < 1; each requester elsewhere.
        """
        assert 0 <= start_share < 1
        self._size = size
        self._request_bytes = request_bytes
        #: 1 for each block that is needed and asked of nobody; of those, which no fellow has.
        self._open = bytearray(block_count)
        self._missing: set[int] = set(needed)
        for index in self._missing:
            self._open[index] = 1
        self._rare = bytearray(self._open)
        self._open_count = len(self._missing)
        self._place = int(start_share * block_count)
        self._sources: dict[Source, _Source] = {}
        self._source_count = 0
        #: How often each block under way is asked for.
        self._asked: dict[int, int] = {}
        #: How long a block takes; None before the first.
        self._usual_s: float | None = None

    @property
    def is_done(self) -> bool:
        """Has everything arrived?"""
        return not self._missing

    @property
    def missing_count(self) -> int:
        """Blocks that have not arrived."""
        return len(self._missing)

    # -- sources ------------------------------------------------------------------------------

    def add_source(self, *, is_holder: bool) -> Source:
        """A connection is ready; returns its number."""
        self._source_count += 1
        count = len(self._open)
        source = _Source(None, None) if is_holder else _Source(bytearray(count), bytearray(count))
        self._sources[self._source_count] = source
        return self._source_count

    def on_have(self, number: Source, first: int, count: int) -> None:
        """A fellow has these blocks now."""
        source = self._sources[number]
        if source.has is None or source.offers is None:
            return
        assert 0 <= first <= first + count <= len(self._open)
        for index in range(first, first + count):
            source.has[index] = 1
            source.offers[index] = self._open[index]
            self._rare[index] = 0

    def drop_source(self, number: Source) -> None:
        """A connection is gone: what was under way on it is open again."""
        source = self._sources.pop(number)
        for index in source.under_way:
            self._release(index)
        if source.has is not None:
            for index in range(len(self._open)):
                if source.has[index]:
                    self._rare[index] = self._open[index] and not self._is_with_fellow(index)

    def _is_with_fellow(self, index: int) -> bool:
        return any(s.has is not None and s.has[index] for s in self._sources.values())

    # -- requests -----------------------------------------------------------------------------

    def next_request(
        self, number: Source, now: float, most_bytes: float = math.inf
    ) -> Request | None:
        """What to ask this source for now; None if it has nothing that is of use.

        At most `most_bytes`, unless one block is larger.
        """
        most_bytes = min(most_bytes, self._request_bytes)
        source = self._sources[number]
        if not self._open_count:
            return self._overdue_request(source, now)
        if source.offers is not None:
            first = self._find(source.offers)
            fields = source.offers
        else:
            fields = self._rare
            first = self._find(fields)
            if first < 0:
                fields = self._open
                first = self._find(fields)
        if first < 0:
            return self._overdue_request(source, now)
        count, size = 0, 0
        while first + count < len(fields) and fields[first + count]:
            size += self._size(first + count)
            if count and (size > most_bytes or count == BLOCKS_PER_REQUEST_MAX):
                break
            count += 1
        for index in range(first, first + count):
            self._take(source, index, now)
        self._place = first + count
        return Request(first, count)

    def _find(self, fields: bytearray) -> int:
        found = fields.find(1, self._place)
        return found if found >= 0 else fields.find(1)

    def _take(self, source: _Source, index: int, now: float) -> None:
        if self._open[index]:
            self._open[index] = self._rare[index] = 0
            self._open_count -= 1
            for other in self._sources.values():
                if other.offers is not None:
                    other.offers[index] = 0
        self._asked[index] = self._asked.get(index, 0) + 1
        source.under_way[index] = now

    def _overdue_request(self, source: _Source, now: float) -> Request | None:
        """What another source holds back for long, if it was asked of no third one."""
        before = now - self._overdue_s()
        for other in self._sources.values():
            if other is source:
                continue
            for index, asked_at in other.under_way.items():
                if asked_at > before:
                    break  # they stand in the order in which they were asked
                known = source.has is None or source.has[index]
                if known and self._asked[index] == 1 and index not in source.under_way:
                    self._take(source, index, now)
                    return Request(index, 1)
        return None

    def _overdue_s(self) -> float:
        usual_s = 0.0 if self._usual_s is None else self._usual_s
        return max(OVERDUE_S_MIN, OVERDUE_TIMES * usual_s)

    # -- answers ------------------------------------------------------------------------------

    def is_under_way(self, number: Source, index: int) -> bool:
        """Was this source asked for this block, and has not answered?"""
        return index in self._sources[number].under_way

    def is_missing(self, index: int) -> bool:
        """Is this block needed and not here?"""
        return index in self._missing

    def on_block(self, number: Source, index: int, now: float, *, is_good: bool) -> None:
        """A source has answered a request for this block; `is_good`: it is here, verified."""
        source = self._sources[number]
        took_s = now - source.under_way.pop(index)
        if is_good and index in self._missing:
            self._missing.discard(index)
            usual_s = took_s if self._usual_s is None else self._usual_s
            self._usual_s = usual_s + _USUAL_WEIGHT * (took_s - usual_s)
        self._release(index)

    def _release(self, index: int) -> None:
        """One source less is asked for a block; if none is left, it is open again."""
        self._asked[index] -= 1
        if self._asked[index]:
            return
        del self._asked[index]
        if index in self._missing:
            self._open[index] = 1
            self._open_count += 1
            self._rare[index] = not self._is_with_fellow(index)
            for source in self._sources.values():
                if source.has is not None and source.offers is not None:
                    source.offers[index] = source.has[index]
