import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringhaul import limits
from ringhaul.ring.plan import (
    ALL_GATHER,
    ALL_REDUCE,
    REDUCE_SCATTER,
    Phase,
    RingPlan,
    plan_ring,
)

WORLD_SIZES = (1, 2, 3, 5, 8)
#: (phase, chunk, segment) of one segment under way, and the ranks it holds values of.
Segment = tuple[Phase, int, int]
Ranks = tuple[int, ...]


@st.composite
def rings(draw: st.DrawFn) -> list[RingPlan]:
    """The plans of all ranks of one ring, with few elements per segment."""
    world_size = draw(st.sampled_from(WORLD_SIZES))
    edges = (0, 1, world_size - 1, world_size, world_size + 1)
    element_count = draw(st.sampled_from(edges) | st.integers(0, 200))
    segment_elements = draw(st.integers(1, 30))
    phases = draw(st.sampled_from((ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER)))
    root = None
    if phases == ALL_GATHER:
        root = draw(st.none() | st.integers(0, world_size - 1))
        element_count *= world_size if root is None else 1
    return [
        RingPlan(rank, world_size, element_count, segment_elements, phases, root)
        for rank in range(world_size)
    ]


class Ring:
    """All ranks of a ring in one process; a segment holds the names of ranks, not values."""

    def __init__(self, plans: list[RingPlan]) -> None:
        self.plans = plans
        self.under_way: list[tuple[int, Segment, Ranks]] = []
        self.received: dict[int, list[Segment]] = defaultdict(list)
        self.results: dict[int, dict[tuple[int, int], Ranks]] = defaultdict(dict)
        self.sent_count = 0
        for plan in plans:
            for phase, chunk in plan.begins_with:
                for segment in range(plan.segment_count(chunk)):
                    if phase is Phase.ALL_GATHER:
                        self.results[plan.rank][chunk, segment] = (plan.rank,)
                    self._send(plan, (phase, chunk, segment), (plan.rank,))

    def _send(self, plan: RingPlan, segment: Segment, ranks: Ranks) -> None:
        self.sent_count += 1
        self.under_way.append(((plan.rank + 1) % plan.world_size, segment, ranks))

    def deliver(self, place: int) -> None:
        rank, (phase, chunk, segment), ranks = self.under_way.pop(place)
        plan = self.plans[rank]
        assert plan.receives_segment(phase, chunk, segment)
        self.received[rank].append((phase, chunk, segment))
        if phase is Phase.REDUCE_SCATTER:
            ranks = (*ranks, rank)
            if not plan.passes_on(phase, chunk):
                phase = Phase.ALL_GATHER
        if phase is Phase.ALL_GATHER:
            self.results[rank][chunk, segment] = ranks
        if plan.passes_on(phase, chunk):
            self._send(plan, (phase, chunk, segment), ranks)


def run_ring(plans: list[RingPlan], seed: int) -> Ring:
    """Deliver in any order until nothing is under way."""
    ring = Ring(plans)
    dice = random.Random(seed)
    while ring.under_way:
        ring.deliver(dice.randrange(len(ring.under_way)))
    return ring


def path(plan: RingPlan, chunk: int) -> Ranks:
    """Whose values a final segment of `chunk` holds, in the order they were combined."""
    if Phase.REDUCE_SCATTER not in plan.phases:
        return (chunk if plan.root is None else plan.root,)
    return tuple((chunk + step) % plan.world_size for step in range(1, plan.world_size + 1))


@given(rings(), st.integers(0, 2**32))
def test_every_rank_ends_with_its_segments_summed_on_the_same_path(
    plans: list[RingPlan], seed: int
) -> None:
    ring = run_ring(plans, seed)

    for plan in plans if len(plans) > 1 else ():
        start, stop = plan.result_bounds
        assert ring.results[plan.rank] == {
            (chunk, segment): path(plan, chunk)
            for chunk in range(plan.chunk_count)
            for segment in range(plan.segment_count(chunk))
            if start <= plan.segment_bounds(chunk, segment)[0] < stop
        }


@given(rings())
def test_what_all_ranks_get_and_put_in_is_the_whole_array(plans: list[RingPlan]) -> None:
    def covered(bounds: list[tuple[int, int]]) -> list[int]:
        return sorted({element for start, stop in bounds for element in range(start, stop)})

    whole = list(range(plans[0].element_count))
    assert covered([plan.result_bounds for plan in plans]) == whole
    assert covered([plan.own_bounds for plan in plans]) == whole
    for plan in plans:
        start, stop = plan.own_bounds
        for _, chunk in plan.begins_with:
            assert start <= plan.chunk_bounds(chunk)[0] <= plan.chunk_bounds(chunk)[1] <= stop


@given(rings(), st.integers(0, 2**32))
def test_each_rank_receives_as_many_different_segments_as_it_expects(
    plans: list[RingPlan], seed: int
) -> None:
    ring = run_ring(plans, seed)

    received = [ring.received[plan.rank] for plan in plans]
    assert [len(set(segments)) for segments in received] == [
        plan.expected_segment_count for plan in plans
    ]
    assert [len(segments) for segments in received] == [
        plan.expected_segment_count for plan in plans
    ]
    assert ring.sent_count == sum(plan.sent_segment_count for plan in plans)


@given(rings())
def test_a_rank_sends_what_the_next_receives(plans: list[RingPlan]) -> None:
    for phase in Phase:
        for plan in plans:
            following = plans[(plan.rank + 1) % plan.world_size]
            chunks = range(-1, plan.chunk_count + 1)
            assert [plan.sends(phase, c) for c in chunks] == [
                following.receives(phase, c) for c in chunks
            ]
    assert all(
        plan.sent_segment_count == plans[(plan.rank + 1) % len(plans)].expected_segment_count
        for plan in plans
    )


@given(rings())
def test_chunks_are_cut_as_array_split_cuts(plans: list[RingPlan]) -> None:
    plan = plans[0]
    elements = np.arange(plan.element_count)

    cut = [elements[slice(*plan.chunk_bounds(c))].tolist() for c in range(plan.chunk_count)]
    assert cut == [part.tolist() for part in np.array_split(elements, plan.chunk_count)]
    assert plan.chunk_count == (plan.world_size if plan.root is None else 1)


@given(rings())
def test_segments_tile_their_chunk(plans: list[RingPlan]) -> None:
    plan = plans[0]
    for chunk in range(plan.chunk_count):
        bounds = [plan.segment_bounds(chunk, s) for s in range(plan.segment_count(chunk))]
        covered = [element for start, stop in bounds for element in range(start, stop)]
        assert covered == list(range(*plan.chunk_bounds(chunk)))
        assert all(0 < stop - start <= plan.segment_elements for start, stop in bounds)


@given(rings())
def test_each_segment_has_a_bit_of_its_own(plans: list[RingPlan]) -> None:
    plan = plans[-1]
    indexes = [
        plan.segment_index(phase, chunk, segment)
        for phase in Phase
        for chunk in range(plan.chunk_count)
        for segment in range(plan.segment_count(chunk))
    ]

    assert indexes == list(range(plan.bitmap_size))


@given(rings(), st.integers(-2, 10), st.integers(-2, 300))
def test_a_segment_that_does_not_exist_is_not_received(
    plans: list[RingPlan], chunk: int, segment: int
) -> None:
    plan = plans[0]
    exists = 0 <= chunk < plan.chunk_count and 0 <= segment < plan.segment_count(chunk)

    may_come = [plan.receives_segment(phase, chunk, segment) for phase in Phase]
    assert may_come == [exists and plan.receives(phase, chunk) for phase in Phase]


@pytest.mark.parametrize(("chunk", "segment"), [(-1, 0), (4, 0), (1, -1), (1, 3), (1, 2**40)])
def test_impossible_numbers_in_a_header_are_not_received(chunk: int, segment: int) -> None:
    plan = RingPlan(rank=3, world_size=4, element_count=12, segment_elements=1)

    assert plan.receives_segment(Phase.ALL_GATHER, 1, 2)
    assert not plan.receives_segment(Phase.ALL_GATHER, chunk, segment)


def test_a_world_of_one_sends_and_receives_nothing() -> None:
    plan = plan_ring(rank=0, world_size=1, element_count=1000, itemsize=4)

    assert (plan.expected_segment_count, plan.sent_segment_count) == (0, 0)
    assert not any(plan.receives(phase, 0) or plan.passes_on(phase, 0) for phase in Phase)


@given(
    world_size=st.sampled_from(WORLD_SIZES),
    element_count=st.integers(0, 10**9),
    itemsize=st.sampled_from((1, 2, 4, 8)),
)
def test_segments_are_neither_too_large_nor_needlessly_small(
    world_size: int, element_count: int, itemsize: int
) -> None:
    plan = plan_ring(0, world_size, element_count, itemsize)
    longest = plan.segment_count(0)
    segment_bytes = plan.segment_elements * itemsize

    assert segment_bytes <= limits.SEGMENT_BYTES_MAX
    assert longest <= 1 or segment_bytes >= limits.SEGMENT_BYTES_MIN
    chunk_start, chunk_stop = plan.chunk_bounds(0)
    chunk_bytes = (chunk_stop - chunk_start) * itemsize
    if chunk_bytes >= limits.SEGMENTS_PER_CHUNK_MIN * limits.SEGMENT_BYTES_MIN:
        assert longest >= limits.SEGMENTS_PER_CHUNK_MIN
    elif chunk_bytes > 0:
        assert longest == max(1, chunk_bytes // limits.SEGMENT_BYTES_MIN)


@given(
    world_size=st.sampled_from(WORLD_SIZES),
    element_count=st.integers(0, 10**9),
    itemsize=st.sampled_from((1, 2, 4, 8)),
)
def test_all_ranks_cut_alike(world_size: int, element_count: int, itemsize: int) -> None:
    sizes = {
        plan_ring(rank, world_size, element_count, itemsize).segment_elements
        for rank in range(world_size)
    }

    assert len(sizes) == 1


def test_no_sliver_is_left_at_the_end_of_a_chunk() -> None:
    in_one_segment = limits.SEGMENT_BYTES_MAX // 4
    plan = plan_ring(rank=0, world_size=2, element_count=2 * (5 * in_one_segment + 1), itemsize=4)

    start, stop = plan.segment_bounds(0, plan.segment_count(0) - 1)
    assert stop - start > plan.segment_elements - plan.segment_count(0)


@given(
    world_size=st.sampled_from(WORLD_SIZES),
    element_count=st.integers(0, 10**9),
    itemsize=st.sampled_from((1, 2, 4, 8)),
)
def test_a_broadcast_is_cut_finer_the_longer_its_path_is(
    world_size: int, element_count: int, itemsize: int
) -> None:
    plan = plan_ring(0, world_size, element_count, itemsize, ALL_GATHER, 0)
    array_bytes = element_count * itemsize
    segment_bytes = plan.segment_elements * itemsize
    wanted = limits.SEGMENTS_PER_CHUNK_MIN * max(1, world_size - 1)

    assert segment_bytes <= limits.SEGMENT_BYTES_MAX
    if array_bytes >= wanted * limits.SEGMENT_BYTES_MIN:
        assert plan.segment_count(0) >= wanted
    elif array_bytes > 0:
        assert plan.segment_count(0) == max(1, array_bytes // limits.SEGMENT_BYTES_MIN)


@pytest.mark.parametrize("root", [-1, 2])
def test_a_root_outside_the_ring_is_our_bug(root: int) -> None:
    with pytest.raises(AssertionError):
        RingPlan(0, 2, 1, 1, ALL_GATHER, root)


def test_a_reduction_has_no_root() -> None:
    with pytest.raises(AssertionError):
        RingPlan(0, 2, 1, 1, ALL_REDUCE, 0)


@pytest.mark.parametrize(
    ("rank", "world_size", "element_count", "segment_elements"),
    [(-1, 2, 1, 1), (2, 2, 1, 1), (0, 0, 1, 1), (0, 1, -1, 1), (0, 1, 1, 0)],
)
def test_an_impossible_plan_is_our_bug(
    rank: int, world_size: int, element_count: int, segment_elements: int
) -> None:
    with pytest.raises(AssertionError):
        RingPlan(rank, world_size, element_count, segment_elements)
