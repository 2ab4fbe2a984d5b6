"""One-shot signals between threads: a thread waits for one, or has it call back.

Decides nothing: an event loop in another thread is woken by a callback that posts to it.
"""

import threading
from collections import deque
from collections.abc import Callable


class Signal:
    """Set once, by any thread, and never cleared."""

    __slots__ = ("_acts", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._acts: deque[Callable[[], None]] = deque()

    def is_set(self) -> bool:
        """Has it happened?"""
        return self._is_set

    def set(self) -> None:
        """Wake everybody who waits, now and later."""
        self._is_set = True
        self._call_back()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block this thread until it is set, at most so long; return whether it is."""
        if self._is_set:
            return True
        # one bare lock: a condition makes one for each wait too, and takes two more
        lock = threading.Lock()
        lock.acquire()
        self.when_set(lock.release)
        try:
            if timeout_s is None:
                return lock.acquire()
            return lock.acquire(timeout=min(max(timeout_s, 0.0), threading.TIMEOUT_MAX))
        finally:
            self.forget(lock.release)

    def when_set(self, act: Callable[[], None]) -> None:
        """Have `act` called once, by the thread that sets it; here and now if it is set.

        `act` may not block nor raise.
        """
        self._acts.append(act)
        if self._is_set and self._take(act):  # else whoever has set it calls it
            act()

    def forget(self, act: Callable[[], None]) -> None:
        """Do not call `act` any more, unless that is under way."""
        self._take(act)

    def _take(self, act: Callable[[], None]) -> bool:
        try:
            self._acts.remove(act)
        except ValueError:
            return False
        return True

    def _call_back(self) -> None:
        while True:
            try:
                act = self._acts.popleft()
            except IndexError:
                return
            act()
