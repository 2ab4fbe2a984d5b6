import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringhaul.state.blocks import BlockLayout, Entry
from ringhaul.state.plan import BLOCKS_PER_REQUEST_MAX, OVERDUE_S_MIN, FetchPlan, Request

MIB = 1 << 20
#: Entries of this many bytes are virtual: the plan knows numbers and sizes only.
LARGE = 5 << 30


def plan_of(
    needed: list[int], count: int, *, size: int = MIB, start_share: float = 0.0
) -> FetchPlan:
    return FetchPlan(needed, count, lambda _: size, request_bytes=MIB, start_share=start_share)


def asked(request: Request | None) -> list[int]:
    return [] if request is None else list(range(request.first, request.first + request.count))


def take(plan: FetchPlan, source: int, now: float = 0.0) -> list[int]:
    """Ask for the next blocks, and have them arrive."""
    indices = asked(plan.next_request(source, now))
    for index in indices:
        plan.on_block(source, index, now, is_good=True)
    return indices


def drain(plan: FetchPlan, source: int) -> list[int]:
    got = []
    while indices := take(plan, source):
        got += indices
    return got


def test_a_holder_is_asked_for_what_is_needed_and_nothing_else() -> None:
    plan = plan_of([1, 3, 4, 9], 10)

    assert drain(plan, plan.add_source(is_holder=True)) == [1, 3, 4, 9]
    assert plan.is_done


def test_nothing_needed_is_done_at_once() -> None:
    plan = plan_of([], 10)

    assert plan.is_done
    assert plan.next_request(plan.add_source(is_holder=True), 0.0) is None


def test_two_holders_are_asked_for_different_blocks() -> None:
    plan = plan_of(list(range(8)), 8)
    one, two = plan.add_source(is_holder=True), plan.add_source(is_holder=True)
    wanted = [asked(plan.next_request(source, 0.0)) for source in (one, two, one, two)]

    assert sorted(index for indices in wanted for index in indices) == [0, 1, 2, 3]


def test_whoever_answers_faster_gives_more() -> None:
    plan = plan_of(list(range(100)), 100)
    fast, slow = plan.add_source(is_holder=True), plan.add_source(is_holder=True)
    held = asked(plan.next_request(slow, 0.0))

    assert len(drain(plan, fast)) == 100 - len(held)
    assert not plan.is_done


def test_requesters_begin_at_places_of_their_own() -> None:
    firsts = []
    for place in range(4):
        plan = plan_of(list(range(100)), 100, start_share=place / 4)
        firsts.append(asked(plan.next_request(plan.add_source(is_holder=True), 0.0))[0])

    assert firsts == [0, 25, 50, 75]


def test_small_blocks_are_asked_for_together_within_bounds() -> None:
    small = plan_of(list(range(1000)), 1000, size=10)
    medium = plan_of(list(range(1000)), 1000, size=MIB // 4)

    counts = [
        len(asked(plan.next_request(plan.add_source(is_holder=True), 0.0)))
        for plan in (small, medium)
    ]

    assert counts == [BLOCKS_PER_REQUEST_MAX, 4]


def test_a_fellow_is_asked_only_for_what_it_has() -> None:
    plan = plan_of(list(range(10)), 10)
    fellow = plan.add_source(is_holder=False)

    assert plan.next_request(fellow, 0.0) is None
    plan.on_have(fellow, 3, 2)
    assert drain(plan, fellow) == [3, 4]


def test_holders_are_asked_first_for_what_no_fellow_has() -> None:
    plan = plan_of(list(range(6)), 6)
    holder, fellow = plan.add_source(is_holder=True), plan.add_source(is_holder=False)
    plan.on_have(fellow, 0, 3)

    assert drain(plan, holder)[:3] == [3, 4, 5]


def test_a_fellow_that_is_gone_leaves_its_blocks_to_the_holders() -> None:
    plan = plan_of(list(range(6)), 6)
    holder, fellow = plan.add_source(is_holder=True), plan.add_source(is_holder=False)
    plan.on_have(fellow, 0, 6)
    plan.next_request(fellow, 0.0)
    plan.drop_source(fellow)

    assert sorted(drain(plan, holder)) == list(range(6))


def test_a_lost_source_costs_what_was_under_way_on_it_and_no_more() -> None:
    plan = plan_of(list(range(6)), 6)
    one, two = plan.add_source(is_holder=True), plan.add_source(is_holder=True)
    got = take(plan, one)
    lost = asked(plan.next_request(one, 0.0))
    plan.drop_source(one)

    rest = drain(plan, two)
    assert set(lost) <= set(rest)
    assert not set(got) & set(rest)
    assert plan.is_done


def test_a_bad_block_is_asked_again() -> None:
    plan = plan_of([0], 1)
    one, two = plan.add_source(is_holder=True), plan.add_source(is_holder=True)
    plan.next_request(one, 0.0)
    plan.on_block(one, 0, 0.0, is_good=False)

    assert plan.is_missing(0)
    assert take(plan, two) == [0]


def test_what_is_held_back_long_is_asked_of_one_other_source() -> None:
    plan = plan_of([0], 1)
    slow, other, third = (plan.add_source(is_holder=True) for _ in range(3))
    plan.next_request(slow, 0.0)

    assert plan.next_request(other, OVERDUE_S_MIN * 0.9) is None
    assert asked(plan.next_request(other, OVERDUE_S_MIN * 1.1)) == [0]
    assert plan.next_request(third, OVERDUE_S_MIN * 9) is None
    plan.on_block(other, 0, 1.0, is_good=True)
    assert plan.is_done
    plan.on_block(slow, 0, 1.0, is_good=True)  # late, and no harm


def test_a_slow_link_on_which_all_blocks_take_long_asks_nothing_twice() -> None:
    plan = plan_of(list(range(4)), 4)
    one, two = plan.add_source(is_holder=True), plan.add_source(is_holder=True)
    for source in (one, two):
        (index,) = asked(plan.next_request(source, 0.0))
        plan.on_block(source, index, 10.0, is_good=True)
    plan.next_request(one, 10.0)
    take(plan, two, 20.0)

    assert plan.next_request(two, 21.0) is None


def test_entries_beyond_4_gib_have_blocks_of_their_own() -> None:
    layout = BlockLayout([Entry("a", b"", 3), Entry("b", b"", LARGE + 1), Entry("c", b"", 0)])
    last = layout.block_count - 1

    assert layout.block_count == 1 + LARGE // MIB + 1
    assert layout.span(last) == (1, LARGE, LARGE + 1)
    assert layout.size(last) == 1
    assert layout.span(0) == (0, 0, 3)
    assert layout.total_bytes == LARGE + 4
    plan = FetchPlan([last], layout.block_count, layout.size, request_bytes=MIB, start_share=0.5)
    assert take(plan, plan.add_source(is_holder=True)) == [last]


@pytest.mark.parametrize("bytes_each", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB])
def test_blocks_cover_every_entry_exactly(bytes_each: int) -> None:
    layout = BlockLayout([Entry(name, b"", bytes_each) for name in "abc"])
    spans = [layout.span(index) for index in range(layout.block_count)]

    for entry_index in range(3):
        own = [span for span in spans if span.entry_index == entry_index]
        assert [span.stop for span in own[:-1]] == [span.start for span in own[1:]]
        assert sum(stop - start for _, start, stop in own) == bytes_each
        assert len(own) == len(layout.blocks_of(entry_index))


@given(st.integers(0, 2**32))
def test_whatever_breaks_every_block_arrives_and_none_is_asked_of_three(seed: int) -> None:
    dice = random.Random(seed)
    count = dice.randrange(1, 40)
    needed = dice.sample(range(count), dice.randrange(count + 1))
    plan = plan_of(needed, count, size=dice.choice([1, MIB]), start_share=dice.random())
    keeper = plan.add_source(is_holder=True)
    has: dict[int, set[int] | None] = {keeper: None}
    under_way: dict[int, list[int]] = {keeper: []}
    now = 0.0
    for _ in range(2000):
        if plan.is_done:
            break
        now += dice.choice([0.01, 0.3, 2.0])
        source = dice.choice(list(has))
        act = dice.random()
        if act < 0.05 and len(has) < 6:
            is_holder = dice.random() < 0.5
            new = plan.add_source(is_holder=is_holder)
            has[new], under_way[new] = None if is_holder else set(), []
        elif act < 0.1 and source != keeper:
            plan.drop_source(source)
            del has[source], under_way[source]
        elif act < 0.25 and (known := has[source]) is not None:
            first = dice.randrange(count)
            length = dice.randrange(count - first + 1)
            plan.on_have(source, first, length)
            known.update(range(first, first + length))
        elif act < 0.6:
            indices = asked(plan.next_request(source, now))
            known = has[source]
            assert known is None or set(indices) <= known
            assert set(indices) <= set(needed)
            under_way[source] += indices
        elif under_way[source]:
            index = under_way[source].pop(dice.randrange(len(under_way[source])))
            plan.on_block(source, index, now, is_good=dice.random() < 0.9)
        asked_times = Counter(index for indices in under_way.values() for index in indices)
        assert max(asked_times.values(), default=0) <= 2
        for number, indices in under_way.items():
            assert all(plan.is_under_way(number, index) for index in indices)
    for index in under_way[keeper]:
        plan.on_block(keeper, index, now, is_good=True)
    for source in [source for source in has if source != keeper]:
        plan.drop_source(source)
    drain(plan, keeper)
    assert plan.is_done
