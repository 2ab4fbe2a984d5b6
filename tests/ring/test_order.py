import random
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringhaul.ids import PeerId
from ringhaul.ring.order import find_ring, largest_ring

Pair = tuple[PeerId, PeerId]


def peers_named(names: str) -> tuple[PeerId, ...]:
    return tuple(PeerId(name) for name in names)


def pairs_named(*pairs: str) -> set[Pair]:
    return {(PeerId(pair[0]), PeerId(pair[1])) for pair in pairs}


def numbered(count: int) -> tuple[PeerId, ...]:
    return tuple(PeerId(f"p{index}") for index in range(count))


def is_good(ring: tuple[PeerId, ...], unusable: set[Pair]) -> bool:
    if len(ring) == 1:
        return True
    return not any(pair in unusable for pair in pairwise((*ring, ring[0])))


def brute_force_rings(peers: tuple[PeerId, ...], unusable: set[Pair]) -> list[tuple[PeerId, ...]]:
    """All good rings that begin with the first peer; the first follows the preference longest."""
    rings = [(peers[0], *rest) for rest in permutations(peers[1:])]
    return [ring for ring in rings if is_good(ring, unusable)]


def brute_force_dropped(
    peers: tuple[PeerId, ...], unusable: set[Pair], evict_first: tuple[PeerId, ...]
) -> tuple[PeerId, ...]:
    for drop_count in range(len(peers)):
        for dropped in combinations(evict_first, drop_count):
            kept = tuple(peer for peer in peers if peer not in dropped)
            if brute_force_rings(kept, unusable):
                return dropped
    raise AssertionError("one peer alone is always a ring")


@st.composite
def networks(
    draw: st.DrawFn, peers_max: int
) -> tuple[tuple[PeerId, ...], set[Pair], tuple[PeerId, ...]]:
    """Peers, unusable pairs among them, and an order of eviction."""
    peers = numbered(draw(st.integers(1, peers_max)))
    pairs = list(permutations(peers, 2))
    density = draw(st.sampled_from((0.1, 0.3, 0.5, 0.7, 0.9)))
    dice = draw(st.randoms(use_true_random=False))
    unusable = {pair for pair in pairs if dice.random() < density}
    return peers, unusable, tuple(draw(st.permutations(peers)))


@settings(max_examples=300)
@given(networks(peers_max=7))
def test_the_first_ring_in_preferred_order_is_found_if_there_is_one(
    network: tuple[tuple[PeerId, ...], set[Pair], tuple[PeerId, ...]],
) -> None:
    peers, unusable, _ = network

    rings = brute_force_rings(peers, unusable)
    assert find_ring(peers, unusable) == (rings[0] if rings else None)


@settings(max_examples=300)
@given(networks(peers_max=6))
def test_the_fewest_are_dropped_and_the_first_to_go_first(
    network: tuple[tuple[PeerId, ...], set[Pair], tuple[PeerId, ...]],
) -> None:
    peers, unusable, evict_first = network
    ring, dropped = largest_ring(peers, unusable, evict_first)

    assert dropped == brute_force_dropped(peers, unusable, evict_first)
    kept = tuple(peer for peer in peers if peer not in dropped)
    assert ring == brute_force_rings(kept, unusable)[0]


@settings(max_examples=20, deadline=None)
@given(networks(peers_max=40))
def test_a_ring_among_many_is_good_and_loses_nobody_unnamed(
    network: tuple[tuple[PeerId, ...], set[Pair], tuple[PeerId, ...]],
) -> None:
    peers, unusable, evict_first = network
    ring, dropped = largest_ring(peers, unusable, evict_first)

    assert is_good(ring, unusable)
    assert sorted(ring + dropped) == sorted(peers)
    assert list(dropped) == sorted(dropped, key=evict_first.index)
    assert largest_ring(peers, set(unusable), evict_first) == (ring, dropped)


def test_a_good_preferred_order_is_taken_as_it_is() -> None:
    assert find_ring(peers_named("dbca"), pairs_named("bd", "da", "ac")) == peers_named("dbca")


def test_peers_before_a_bad_pair_keep_their_places() -> None:
    assert find_ring(peers_named("abcdef"), pairs_named("cd")) == peers_named("abcedf")


def test_the_pair_that_closes_the_ring_counts() -> None:
    assert find_ring(peers_named("abcd"), pairs_named("da")) == peers_named("abdc")


@pytest.mark.parametrize("bad", ["ab", "ba"])
def test_two_peers_need_both_directions(bad: str) -> None:
    assert find_ring(peers_named("ab"), pairs_named(bad)) is None
    assert largest_ring(peers_named("ab"), pairs_named(bad), peers_named("ab")) == (
        peers_named("b"),
        peers_named("a"),
    )


def test_no_peers_make_an_empty_ring() -> None:
    assert find_ring((), set()) == ()
    assert largest_ring((), set(), ()) == ((), ())


def test_one_peer_is_a_ring_whatever_is_unusable() -> None:
    assert find_ring(peers_named("a"), pairs_named("aa")) == peers_named("a")


def test_pairs_of_strangers_do_not_matter() -> None:
    assert find_ring(peers_named("abc"), pairs_named("ax", "xb", "ca")) == peers_named("acb")


def test_an_unreachable_peer_is_dropped_whoever_was_to_go_first() -> None:
    unusable = pairs_named("ac", "bc", "dc")

    ring, dropped = largest_ring(peers_named("abcd"), unusable, peers_named("dbac"))
    assert (ring, dropped) == (peers_named("abd"), peers_named("c"))


def test_two_halves_without_a_way_back_keep_the_larger() -> None:
    unusable = pairs_named(*(y + x for x in "ab" for y in "cde"))

    ring, dropped = largest_ring(peers_named("abcde"), unusable, peers_named("edcba"))
    assert (ring, dropped) == (peers_named("cde"), peers_named("ba"))


def test_many_peers_that_cannot_be_neighbours_are_interleaved() -> None:
    peers = numbered(30)
    closed = peers[15:]
    unusable = set(permutations(closed, 2))

    ring = find_ring(peers, unusable)
    assert ring is not None
    assert is_good(ring, unusable)
    assert ring[0] == peers[0]


def test_a_thousand_peers_find_a_ring_around_some_bad_pairs() -> None:
    peers = numbered(1000)
    unusable = {(peers[index], peers[index + 1]) for index in range(0, 990, 7)}
    unusable |= {(peers[index], peers[index + 2]) for index in range(0, 990, 5)}

    ring = find_ring(peers, unusable)
    assert ring is not None
    assert is_good(ring, unusable)


def test_many_bad_peers_among_many_are_dropped_in_the_end() -> None:
    peers = numbered(60)
    bad = peers[40:]  # each reaches one of the first 20 only: no ring holds more than a few
    unusable = {(b, p) for b in bad for p in peers if p != b and p != peers[0]}

    ring, dropped = largest_ring(peers, unusable, peers)
    assert is_good(ring, unusable)
    assert len(ring) == 41
    assert set(dropped) < set(bad)


def test_two_hundred_peers_keep_all_though_most_pairs_are_unusable() -> None:
    dice = random.Random(0)
    peers = [PeerId(f"p{number}") for number in range(200)]
    pairs = [(a, b) for a in peers for b in peers if a != b]
    unusable = {pair for pair in pairs if dice.random() < 0.9}

    ring, dropped = largest_ring(peers, unusable, peers)

    assert dropped == ()
    assert not any(pair in unusable for pair in pairwise((*ring, ring[0])))
