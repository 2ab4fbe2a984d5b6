"""Which segment is sent next: operations take turns, within what the receiver allows.

A receiver buffers data of operations that it has not posted up to `EAGER_BYTES_MAX` in all;
beyond that an operation waits for its grant. Decides nothing about streams.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator

from ringhaul import limits
from ringhaul.ids import Generation
from ringhaul.io.transfer import Segment, TransferKey, eager_cost

#: Grants kept for operations not begun here; the oldest are of operations long done.
_GRANTS_MAX = 2 * limits.OPEN_OPERATIONS_MAX


class _Lane:
    """What one operation has to send."""

    __slots__ = ("again", "eager_bytes", "held", "is_granted", "queue", "source")

    def __init__(self, *, is_granted: bool) -> None:
        self.is_granted = is_granted
        self.eager_bytes = 0
        #: Taken, but not allowed yet.
        self.held: Segment | None = None
        self.again: deque[Segment] = deque()
        self.source: Iterator[Segment] | None = None
        self.queue: deque[Segment] = deque()

    def pull(self) -> Segment | None:
        """The next in order: what was lost, the rank's own values, what is passed on.

        Own values come before what is passed on, or the last of them would have the whole way
        around the ring before them when everything else is done.
        """
        if self.held is not None:
            held, self.held = self.held, None
            return held
        if self.again:
            return self.again.popleft()
        if self.source is not None:
            segment = next(self.source, None)
            if segment is not None:
                return segment
            self.source = None
        return self.queue.popleft() if self.queue else None


class Lanes:
    """All operations that have something to send on one link."""

    def __init__(self) -> None:
        self._generation = Generation(0)
        self._lanes: dict[TransferKey, _Lane] = {}
        #: Those that may have something to send now, in turn.
        self._active: OrderedDict[TransferKey, _Lane] = OrderedDict()
        #: Those that wait for a grant, or for others' eager bytes.
        self._held: OrderedDict[TransferKey, _Lane] = OrderedDict()
        self._granted: OrderedDict[tuple[int, TransferKey], None] = OrderedDict()
        self._eager_bytes = 0

    def __bool__(self) -> bool:
        """May there be something to take?"""
        return bool(self._active)

    def use(self, generation: Generation) -> None:
        """A generation is open: forget what older ones had to send."""
        self._generation = generation
        self._lanes.clear()
        self._active.clear()
        self._held.clear()
        self._eager_bytes = 0
        for grant in [g for g in self._granted if g[0] < generation]:
            del self._granted[grant]

    def _lane(self, key: TransferKey) -> _Lane:
        lane = self._lanes.get(key)
        if lane is None:
            is_granted = (self._generation, key) in self._granted
            lane = self._lanes[key] = _Lane(is_granted=is_granted)
        if lane.held is None:
            self._active[key] = lane
        return lane

    def add_source(self, key: TransferKey, segments: Iterator[Segment]) -> None:
        """What an operation sends unasked; each segment is made when a stream is free for it."""
        self._lane(key).source = segments

    def add(self, segment: Segment) -> None:
        """A segment that is to be passed on."""
        self._lane(segment.transfer.key).queue.append(segment)

    def add_again(self, segment: Segment) -> None:
        """A segment that may not have arrived."""
        self._lane(segment.transfer.key).again.append(segment)

    def take(self) -> Segment | None:
        """The next segment that may be sent."""
        while self._active:
            key, lane = next(iter(self._active.items()))
            segment = lane.pull()
            if segment is None:
                self._active.pop(key, None)
                continue
            if not lane.is_granted:
                size = eager_cost(len(segment.view))
                if self._eager_bytes + size > limits.EAGER_BYTES_MAX:
                    lane.held = segment
                    self._active.pop(key, None)
                    self._held[key] = lane
                    continue
                lane.eager_bytes += size
                self._eager_bytes += size
            if len(self._active) > 1:
                self._active.move_to_end(key)
            return segment
        return None

    def on_grant(self, generation: int, key: TransferKey) -> None:
        """The receiver has posted an operation."""
        if generation < self._generation:
            return
        self._granted[generation, key] = None
        while len(self._granted) > _GRANTS_MAX:
            self._granted.popitem(last=False)
        if generation == self._generation:
            lane = self._lanes.get(key)
            if lane is not None:
                lane.is_granted = True
                self._give_back(lane)

    def release(self, generation: int, key: TransferKey) -> None:
        """An operation has ended."""
        self._granted.pop((generation, key), None)
        lane = self._lanes.pop(key, None)
        if lane is not None:
            lane.held = lane.source = None
            self._active.pop(key, None)
            self._held.pop(key, None)
            self._give_back(lane)

    def _give_back(self, lane: _Lane) -> None:
        """Its bytes are not early any more: there may be room for others."""
        self._eager_bytes -= lane.eager_bytes
        lane.eager_bytes = 0
        self._active.update(self._held)
        self._held.clear()
