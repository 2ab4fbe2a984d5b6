"""Simulated time: what happens when, and the dice of one seed. Decides nothing else."""

import heapq
import itertools
import random
from collections.abc import Callable

Act = Callable[[], None]


class Agenda:
    """Acts at instants, in order; acts of one instant in the order they were noted."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.dice = random.Random(seed)
        self._heap: list[tuple[float, int, Act]] = []
        self._order = itertools.count()

    def at(self, instant: float, act: Act) -> None:
        """Note an act; what lies in the past happens now."""
        heapq.heappush(self._heap, (max(instant, self.now), next(self._order), act))

    def after(self, delay_s: float, act: Act) -> None:
        """Note an act for so many seconds from now."""
        self.at(self.now + delay_s, act)

    def go_on(self) -> bool:
        """Do the next act, if there is one."""
        if not self._heap:
            return False
        self.now, _, act = heapq.heappop(self._heap)
        act()
        return True

    def chance(self, probability: float) -> bool:
        """Roll the dice."""
        return self.dice.random() < probability

    def between(self, low_s: float, high_s: float) -> float:
        """A random duration."""
        return low_s + (high_s - low_s) * self.dice.random()
