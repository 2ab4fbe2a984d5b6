"""A ring order around unusable pairs, and whom to leave out if no ring holds all.

Decides the order only; who is evicted, and what they are told, is the coordinator's matter.
Deterministic, and bounded: the search is a depth-first one for a Hamiltonian cycle, exact
for few peers and for few unusable pairs, and gives up after a number of steps otherwise.
"""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import combinations, pairwise

from ringhaul import limits
from ringhaul.ids import PeerId

#: Peers looked at for the price of one step more.
_LOOKS_PER_STEP = 16
#: (sender, receiver): a directed pair; the first cannot send to the second.
Pair = tuple[PeerId, PeerId]


def neighbours_of(ring_order: Sequence[PeerId], peer: PeerId) -> frozenset[PeerId]:
    """Whom a peer of this ring sends to and receives from; nobody in a world of one."""
    rank = ring_order.index(peer)
    beside = (ring_order[rank - 1], ring_order[(rank + 1) % len(ring_order)])
    return frozenset(beside) - {peer}


def find_ring(
    preferred: Sequence[PeerId], unusable: AbstractSet[Pair]
) -> tuple[PeerId, ...] | None:
    """Order all of `preferred` so that no rank sends to the next over an unusable pair.

    Returns:
        The preferred order itself if it is good; else one that follows it as long as it
        can. The first peer stays first. None if there is no such ring, or none was found in
        `RING_SEARCH_STEPS_MAX` steps.
    """
    assert len(set(preferred)) == len(preferred), "a ring holds each peer once"
    ring = tuple(preferred)
    if len(ring) <= 1 or not any(pair in unusable for pair in pairwise((*ring, ring[0]))):
        return ring
    graph = _Graph(ring, unusable)
    return graph.named(_find_path(graph, graph.everyone, _Steps(limits.RING_SEARCH_STEPS_MAX)))


def largest_ring(
    preferred: Sequence[PeerId], unusable: AbstractSet[Pair], evict_first: Sequence[PeerId]
) -> tuple[tuple[PeerId, ...], tuple[PeerId, ...]]:
    """Order as many of `preferred` as a ring can hold.

    Drops the fewest, and among equally many those that come first in `evict_first`. Where
    trying all choices would take more than `RING_SEARCH_STEPS_MAX` steps, drops who takes
    part in the most unusable pairs, one after another: then a larger ring may exist.

    Args:
        preferred: all peers, in the order they would have if all pairs were good.
        unusable: directed pairs that may not be neighbours.
        evict_first: names all of `preferred`, the first to go first; others are ignored.

    Returns:
        The ring order, which is empty only if `preferred` is, and the dropped peers in the
        order of `evict_first`.
    """
    everyone = set(preferred)
    evictable = [peer for peer in evict_first if peer in everyone]
    assert sorted(evictable) == sorted(preferred), "evict_first names all peers, each once"
    ring = find_ring(preferred, unusable)
    if ring is None:
        graph = _Graph(preferred, unusable)
        position = {peer: index for index, peer in enumerate(preferred)}
        indexes = [position[peer] for peer in evictable]
        path = _try_all_choices(graph, indexes) or _drop_the_worst(graph, indexes)
        ring = graph.named(path) or (evictable[-1],)
    dropped = everyone.difference(ring)
    return ring, tuple(peer for peer in evictable if peer in dropped)


class _Steps:
    """Counts down what a search may still look at."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def take(self, count: int = 1) -> bool:
        """Use `count` steps; False if there are not so many left."""
        self.left -= count
        return self.left >= 0


class _Graph:
    """Who may send to whom: peers are positions in the preferred order, sets are bit masks."""

    def __init__(self, peers: Sequence[PeerId], unusable: AbstractSet[Pair]) -> None:
        self.peers = tuple(peers)
        self.everyone = (1 << len(peers)) - 1
        #: To whom each can send, and from whom each can receive.
        self.receivers = [self.everyone ^ (1 << index) for index in range(len(peers))]
        self.senders = list(self.receivers)
        position = {peer: index for index, peer in enumerate(peers)}
        for sender, receiver in unusable:
            if sender in position and receiver in position:
                self.receivers[position[sender]] &= ~(1 << position[receiver])
                self.senders[position[receiver]] &= ~(1 << position[sender])

    def named(self, path: Sequence[int] | None) -> tuple[PeerId, ...] | None:
        """The ring order that a path stands for."""
        return None if path is None else tuple(self.peers[index] for index in path)

    def members(self, chosen: int) -> list[int]:
        """The positions in a mask, ascending."""
        return [index for index in range(len(self.peers)) if chosen >> index & 1]

    def good_counts(self, index: int, chosen: int) -> tuple[int, int]:
        """How many of `chosen` this peer can send to, and receive from."""
        return (
            (self.receivers[index] & chosen).bit_count(),
            (self.senders[index] & chosen).bit_count(),
        )

    def without_isolated(self, chosen: int) -> int:
        """Leave out, again and again, whoever can send to no other or receive from no other.

        No ring of two or more can hold these, whomever else it leaves out.
        """
        while True:
            kept = sum(
                1 << index for index in self.members(chosen) if all(self.good_counts(index, chosen))
            )
            if kept == chosen:
                return chosen
            chosen = kept


def _try_all_choices(graph: _Graph, evict_first: Sequence[int]) -> list[int] | None:
    """The largest ring of two or more; None if there is none, or too many choices."""
    steps = _Steps(limits.RING_SEARCH_STEPS_MAX)
    kept = graph.without_isolated(graph.everyone)
    evictable = [index for index in evict_first if kept >> index & 1]
    # That there is no ring for everyone is known.
    for drop_count in range(kept == graph.everyone, len(evictable) - 1):
        for dropped in combinations(evictable, drop_count):
            # Looking at a choice costs about a step for each peer, before any search.
            if not steps.take(len(evictable)):
                return None
            path = _find_path(graph, kept & ~sum(1 << index for index in dropped), steps)
            if path is not None:
                return path
    return None


def _drop_the_worst(graph: _Graph, evict_first: Sequence[int]) -> list[int] | None:
    """A ring of two or more among those that are left when the worst connected have gone.

    How many have to go is found by doubling and halving, so that few searches are in vain.
    """
    shrinking = []
    chosen = graph.without_isolated(graph.everyone)
    while chosen.bit_count() >= 2:
        shrinking.append(chosen)
        good_counts = {i: sum(graph.good_counts(i, chosen)) for i in graph.members(chosen)}
        worst = min((i for i in evict_first if i in good_counts), key=good_counts.__getitem__)
        chosen = graph.without_isolated(chosen & ~(1 << worst))
    best = None
    steps = _Steps(limits.RING_SEARCH_STEPS_MAX)
    too_many, few_enough = -1, len(shrinking)
    reach = 1  # doubled while nothing is found: rather few are dropped than many
    while few_enough - too_many > 1:
        middle = min(too_many + reach, (too_many + few_enough) // 2)
        chosen = shrinking[middle]
        count = chosen.bit_count()
        a_path = count * (1 + count // _LOOKS_PER_STEP)
        limit = min(max(2 * a_path, limits.RING_SEARCH_STEPS_MAX // 8), max(steps.left, a_path))
        search = _Steps(limit)
        path = _find_path(graph, chosen, search)
        steps.take(limit - max(search.left, 0))
        if path is None:
            too_many = middle
            reach *= 2
        else:
            best, few_enough = path, middle
    return best


def _find_path(graph: _Graph, chosen: int, steps: _Steps) -> list[int] | None:
    """A path through all of `chosen` (two or more) and home, within `steps`."""
    if graph.without_isolated(chosen) != chosen:
        return None
    search = _Search(graph, chosen)
    half = _Steps(steps.left // 2)
    path = search.run(half, difficult_first=False)
    steps.left -= steps.left // 2 - max(half.left, 0)
    if path is None and half.left < 0:
        # The preferred order led astray: try again with the difficult peers first.
        path = search.run(steps, difficult_first=True)
    return path


class _Search:
    """Depth-first search for a path from the first of `chosen` through all and back.

    Nobody of `chosen` is isolated at the start, and a step that leaves one of the rest
    without a sender or a receiver is not taken; so a path through all also leads home.
    """

    def __init__(self, graph: _Graph, chosen: int) -> None:
        self.members = graph.members(chosen)
        self._graph = graph
        self._home = 1 << self.members[0]
        self._rest = chosen ^ self._home
        good_counts = {index: graph.good_counts(index, chosen) for index in self.members}
        #: How many others each cannot send to, or receive from: the direction that is worse.
        self._missing = {
            index: len(self.members) - 1 - min(counts) for index, counts in good_counts.items()
        }
        self._by_missing = sorted(self.members, key=lambda index: -self._missing[index])
        #: (last peer, peers not yet on the path) from which no path leads home.
        self._dead: set[tuple[int, int]] = set()
        #: Peers looked at since the last step: with many peers and few good pairs a step is long.
        self._looked = 0

    def run(self, steps: _Steps, *, difficult_first: bool) -> list[int] | None:
        """The first path when candidates are tried in their order, or the difficult ones first.

        A candidate costs one step, and more if many peers had to be looked at.

        None if there is no path, or `steps` ran out: then `steps.left` is negative.
        """
        path = [self.members[0]]
        rest = self._rest
        untried = [self._candidates(difficult_first, path[0], rest)]
        while path:
            if not rest:
                assert self._graph.receivers[path[-1]] & self._home
                return path
            for index in untried[-1]:
                after = rest ^ (1 << index)
                is_dead = (index, after) in self._dead
                if not is_dead:
                    is_dead = self._strands(path[-1], index, after)
                if not steps.take(1 + self._looked // _LOOKS_PER_STEP):
                    return None
                self._looked = 0
                if not is_dead:
                    path.append(index)
                    rest = after
                    untried.append(self._candidates(difficult_first, index, rest))
                    break
            else:
                untried.pop()
                last = path.pop()
                self._dead.add((last, rest))
                rest |= 1 << last
        return None

    def _candidates(self, difficult_first: bool, last: int, rest: int) -> Iterator[int]:
        reachable = self._graph.receivers[last] & rest
        if not difficult_first:
            while reachable:
                first = reachable & -reachable
                reachable ^= first
                yield first.bit_length() - 1
            return
        # whoever can go on to, or be reached from, the fewest of the rest
        candidates = self._graph.members(reachable)
        self._looked += len(candidates)
        good_counts = self._graph.good_counts
        yield from sorted(candidates, key=lambda index: sum(good_counts(index, rest)))

    def _strands(self, before: int, last: int, rest: int) -> bool:
        """Whether going from `before` to `last` leaves one of `rest` without sender or receiver.

        Who misses fewer peers than there are in `rest` has both, and the others only need
        a look if they lost `before` as sender or `last` as receiver.
        """
        graph = self._graph
        affected = (graph.receivers[before] | graph.senders[last]) & rest
        possible_senders, possible_receivers = rest | (1 << last), rest | self._home
        rest_count = rest.bit_count()
        for index in self._by_missing:
            if self._missing[index] < rest_count:
                return False
            self._looked += 1
            if affected >> index & 1 and not (
                graph.senders[index] & possible_senders
                and graph.receivers[index] & possible_receivers
            ):
                return True
        return False
