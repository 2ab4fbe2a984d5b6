"""What one rank sends, receives and finishes in a ring collective: chunks, segments, counts.

Pure arithmetic on world size and element count. Decides nothing about streams, order of
arrival or memory: a segment may be handled as soon as it is there, whatever came before it.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from ringhaul import limits


class Phase(enum.IntEnum):
    """The halves of a ring all-reduce; the number is what segment headers carry."""

    REDUCE_SCATTER = 0
    ALL_GATHER = 1


ALL_REDUCE = (Phase.REDUCE_SCATTER, Phase.ALL_GATHER)
REDUCE_SCATTER = (Phase.REDUCE_SCATTER,)
ALL_GATHER = (Phase.ALL_GATHER,)


@dataclass(frozen=True)  # no slots: what is derived is kept
class RingPlan:
    """The part of one rank in a ring collective over `element_count` elements.

    Rank r sends to r + 1 and receives from r - 1 (mod world size). In the reduce-scatter
    rank r begins by sending its own values of `first_chunk`; a received segment is combined
    with the rank's own values and sent on, or, if it belongs to `owned_chunk`, is final. In
    the all-gather final segments travel from the `origin` of their chunk through all other
    ranks: each stores what it receives and sends it on, unless the next rank is the origin.
    In a world of one nothing is sent or received.

    A collective is made of one phase or both:

    - all-reduce: both. A segment that is final begins its way through the all-gather.
    - reduce-scatter: the first alone. Each rank keeps its `owned_chunk`.
    - all-gather: the second alone. The array is the result, its chunks are what the ranks
      put in, so `element_count` is a multiple of `world_size`.
    - broadcast: the second alone, with one chunk, the array, which travels from `root`.

    Args:
        rank: in [0, world_size).
        world_size: at least 1; the array is cut into `chunk_count` chunks, mostly as many.
        element_count: of the whole array, 0 or more.
        segment_elements: elements per segment; the last segment of a chunk may be shorter.
            The same on all ranks, in both phases.
        phases: of `ALL_REDUCE`, `REDUCE_SCATTER`, `ALL_GATHER`.
        root: the rank that a broadcast starts from; None for the others.
    """

    rank: int
    world_size: int
    element_count: int
    segment_elements: int
    phases: tuple[Phase, ...] = ALL_REDUCE
    root: int | None = None

    def __post_init__(self) -> None:
        """A plan is made from checked numbers; anything else is our bug."""
        assert 0 <= self.rank < self.world_size, self
        assert self.element_count >= 0, self
        assert self.segment_elements >= 1, self
        assert self.root is None or 0 <= self.root < self.world_size, self
        assert self.root is None or self.phases == ALL_GATHER, self

    @cached_property
    def chunk_count(self) -> int:
        """Chunks that the array is cut into."""
        return self.world_size if self.root is None else 1

    @property
    def first_chunk(self) -> int:
        """The chunk whose own values this rank sends first; it is never reduced here."""
        return (self.rank - 1) % self.world_size

    @property
    def owned_chunk(self) -> int:
        """The chunk that this rank finishes in the reduce-scatter."""
        return self.rank

    def origin(self, chunk: int) -> int:
        """The rank from which `chunk` travels in the all-gather."""
        return chunk if self.root is None else self.root

    @property
    def begins_with(self) -> Iterator[tuple[Phase, int]]:
        """Phase and chunk of what this rank sends unasked: its own values."""
        phase = self.phases[0]
        if phase is Phase.REDUCE_SCATTER:
            chunks = [self.first_chunk]
        else:
            chunks = [c for c in range(self.chunk_count) if self.origin(c) == self.rank]
        return ((phase, chunk) for chunk in chunks if self.sends(phase, chunk))

    @cached_property
    def own_bounds(self) -> tuple[int, int]:
        """First element and end of what this rank puts in."""
        if self.phases == ALL_GATHER and self.root is None:
            return self.chunk_bounds(self.rank)
        return 0, self.element_count

    @cached_property
    def result_bounds(self) -> tuple[int, int]:
        """First element and end of what this rank gets."""
        if Phase.ALL_GATHER not in self.phases:
            return self.chunk_bounds(self.owned_chunk)
        return 0, self.element_count

    def chunk_bounds(self, chunk: int) -> tuple[int, int]:
        """First element and end of `chunk`: as `np.array_split` cuts, longer chunks first."""
        assert 0 <= chunk < self.chunk_count, (chunk, self)
        base, longer = divmod(self.element_count, self.chunk_count)
        start = chunk * base + min(chunk, longer)
        return start, start + base + (chunk < longer)

    def segment_count(self, chunk: int) -> int:
        """Number of segments of `chunk`; 0 if it is empty."""
        start, stop = self.chunk_bounds(chunk)
        return -(-(stop - start) // self.segment_elements)

    def segment_bounds(self, chunk: int, segment: int) -> tuple[int, int]:
        """First element and end of a segment, counted from the start of the array."""
        chunk_start, chunk_stop = self.chunk_bounds(chunk)
        start = chunk_start + segment * self.segment_elements
        assert chunk_start <= start < chunk_stop, (chunk, segment, self)
        return start, min(start + self.segment_elements, chunk_stop)

    def sends(self, phase: Phase, chunk: int) -> bool:
        """Whether this rank sends `chunk` to the next in `phase`: its own, or passed on."""
        if not 0 <= chunk < self.chunk_count or phase not in self.phases:
            return False
        if phase is Phase.REDUCE_SCATTER:
            return chunk != self.owned_chunk
        return self.origin(chunk) != (self.rank + 1) % self.world_size

    def receives(self, phase: Phase, chunk: int) -> bool:
        """Whether this rank receives `chunk` in `phase`; False for a chunk there is not."""
        if not 0 <= chunk < self.chunk_count or phase not in self.phases:
            return False
        if phase is Phase.REDUCE_SCATTER:
            return chunk != self.first_chunk
        return self.origin(chunk) != self.rank

    def receives_segment(self, phase: Phase, chunk: int, segment: int) -> bool:
        """Whether a header with these numbers may come: False for whatever is impossible."""
        return self.receives(phase, chunk) and 0 <= segment < self.segment_count(chunk)

    def passes_on(self, phase: Phase, chunk: int) -> bool:
        """Whether a segment of `chunk` goes on to the next rank in the phase it came in.

        A reduce-scatter segment that does not is final: if there is an all-gather, it opens
        that of its chunk.
        """
        return self.sends(phase, chunk)

    @cached_property
    def expected_segment_count(self) -> int:
        """All segments that this rank receives, over all phases."""
        return self._segments_but(self.first_chunk, self.rank)

    @property
    def sent_segment_count(self) -> int:
        """All segments that this rank sends, over all phases."""
        return self._segments_but(self.owned_chunk, (self.rank + 1) % self.world_size)

    def _segments_but(self, reduced: int, origin: int) -> int:
        """All segments of all phases, but those of one reduced chunk and of one origin."""
        if self.root is not None:
            return 0 if self.root == origin else self._array_segment_count
        count = 0
        if Phase.REDUCE_SCATTER in self.phases:
            count += self._array_segment_count - self.segment_count(reduced)
        if Phase.ALL_GATHER in self.phases:
            count += self._array_segment_count - self.segment_count(origin)
        return count

    @cached_property
    def bitmap_size(self) -> int:
        """Bits that tell which segments have been received: one per `segment_index`."""
        return 2 * self._array_segment_count

    def segment_index(self, phase: Phase, chunk: int, segment: int) -> int:
        """The number of a segment in [0, bitmap_size), different for every segment.

        Dense over all chunks, so a bitmap also has (unused) bits for what is never received.
        """
        assert 0 <= segment < self.segment_count(chunk), (chunk, segment, self)
        return phase * self._array_segment_count + self._segments_before(chunk) + segment

    @cached_property
    def _array_segment_count(self) -> int:
        return self._segments_before(self.chunk_count)

    def _segments_before(self, chunk: int) -> int:
        """Segments of all chunks below `chunk`, which may be the number of chunks."""
        base, longer = divmod(self.element_count, self.chunk_count)
        in_longer = -(-(base + 1) // self.segment_elements)
        in_shorter = -(-base // self.segment_elements)
        return min(chunk, longer) * in_longer + max(chunk - longer, 0) * in_shorter


@lru_cache(maxsize=1024)  # training loops reduce the same arrays again and again
def plan_ring(
    rank: int,
    world_size: int,
    element_count: int,
    itemsize: int,
    phases: tuple[Phase, ...] = ALL_REDUCE,
    root: int | None = None,
) -> RingPlan:
    """Plan a ring collective for one rank.

    The size of a segment depends only on what is the same on all ranks. A chunk is cut into
    at least `SEGMENTS_PER_CHUNK_MIN` segments unless they fell below `SEGMENT_BYTES_MIN`,
    and into equal parts, so that no sliver is left at its end.

    Args:
        rank: of this peer, in [0, world_size).
        world_size: number of members, at least 1.
        element_count: of the whole array.
        itemsize: bytes of one element in the widest form that travels: for float16 summed
            in float32 it is 4.
        phases: of the collective; see `RingPlan`.
        root: of a broadcast. Its only chunk is cut finer, as its path is as long as the ring
            and a rank waits for one segment per step of it.
    """
    assert itemsize >= 1, itemsize
    chunk_count = world_size if root is None else 1
    parts_min = limits.SEGMENTS_PER_CHUNK_MIN * max(1, world_size - 1 if root is not None else 1)
    chunk_elements = -(-element_count // chunk_count)
    elements_max = max(1, limits.SEGMENT_BYTES_MAX // itemsize)
    elements_min = max(1, limits.SEGMENT_BYTES_MIN // itemsize)
    parts = max(
        1,
        -(-chunk_elements // elements_max),
        min(parts_min, chunk_elements // elements_min),
    )
    segment_elements = max(1, -(-chunk_elements // parts))
    return RingPlan(rank, world_size, element_count, segment_elements, phases, root)
