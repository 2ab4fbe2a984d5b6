"""Readiness of many sockets in one trio task, and what other threads hand over.

A task switch of trio per wake-up of each stream costs more than moving the bytes of a small
segment. So sockets of the data plane and control connections share a selector of their own,
whose descriptor one task waits for, and are handled by plain calls until nothing is ready. It
then waits a moment in the selector itself: in an operation one message soon follows the other.
Decides nothing about what is read.
"""

import logging
import selectors
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ringhaul.io.system import REAL, Bell, System

logger = logging.getLogger(__name__)

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE
#: So long sockets are handled in a row before the other tasks have their turn.
_TURN_S = 0.004
#: So long the other tasks are kept waiting when nothing is ready. Coming back to the selector
#: by way of trio costs 50 to 100 us, a tenth of a call that reduces 64 KiB.
_LINGER_S = 0.001


class Descriptor(Protocol):
    """What a selector needs to know of a socket."""

    @property
    def is_closed(self) -> bool:
        """Whether the descriptor may be another's by now."""

    def fileno(self) -> int:
        """The descriptor."""


class Handler(Protocol):
    """Owns one socket. Raises nothing: it deals with the end of its stream itself."""

    @property
    def sock(self) -> Descriptor:
        """What is watched."""

    def on_ready(self, mask: int) -> None:
        """The socket can be read or written, or has ended."""


class Reactor:
    """Calls the handlers of ready sockets. All methods are for the trio thread."""

    def __init__(self, system: System = REAL) -> None:
        self.system = system
        #: What everything that moves data goes by.
        self.clock = system.clock
        self._selector = system.selector()
        self._masks: dict[int, int] = {}
        self._handlers: dict[int, Handler] = {}
        self._is_closed = False
        self._is_turning = False
        #: What is to be done at the end of the turn, once each: soon, or before a pause.
        self._soon: dict[Callable[[], None], None] = {}
        self._late: dict[Callable[[], None], None] = {}

    def watch(self, handler: Handler, mask: int) -> None:
        """Call `handler.on_ready` when one of `mask` is possible; 0: not any more."""
        fd = handler.sock.fileno()
        known = self._masks.get(fd, 0)
        if mask == known or self._is_closed:
            return
        if mask == 0:
            self._selector.unregister(fd)
            del self._masks[fd], self._handlers[fd]
            return
        if known == 0:
            self._selector.register(fd, mask, handler)
        else:
            self._selector.modify(fd, mask, handler)
        self._masks[fd] = mask
        self._handlers[fd] = handler

    def forget(self, handler: Handler) -> None:
        """To be called before the socket is closed; a second time it does nothing."""
        if not handler.sock.is_closed:
            self.watch(handler, 0)

    def defer(self, act: Callable[[], None], *, until_pause: bool = False) -> None:
        """Call `act` once when what is ready now has been handled; at once if nothing is.

        So what several handlers have to say leaves in one system call. `until_pause`: it may
        wait until nothing is ready for a moment, at most for `_TURN_S` and one wait.
        """
        if not self._is_turning:
            act()
        elif until_pause:
            self._late[act] = None
        else:
            self._soon[act] = None

    def handle_ready(self, wait_s: float = 0.0) -> bool:
        """Handle what is ready now, or first within `wait_s`; tell whether anything was."""
        ready = self._selector.select(wait_s)
        if not ready:
            return False
        self._is_turning = True
        try:
            for key, mask in ready:
                handler: Handler = key.data
                if self._handlers.get(key.fd) is handler:  # else closed just now
                    handler.on_ready(mask)
        finally:
            self._is_turning = False
            _do_all(self._soon)
        return True

    async def run(self) -> None:
        """Handle what is ready until cancelled."""
        try:
            while True:
                await self.system.wait_ready(self._selector)
                turn_ends_at = self.clock() + _TURN_S
                while self.handle_ready(_LINGER_S):
                    if self.clock() > turn_ends_at:
                        break
                _do_all(self._late)
        finally:
            self._is_closed = True
            self._selector.close()


def _do_all(acts: dict[Callable[[], None], None]) -> None:
    while acts:
        act = next(iter(acts))
        del acts[act]
        act()


class Mailbox:
    """What other threads have done in the reactor's: in the order in which it was posted."""

    def __init__(self, reactor: Reactor) -> None:
        """Begin to take; who makes one closes it."""
        self._acts: deque[Callable[[], None]] = deque()
        self._bell = reactor.system.bell()
        self._clock = reactor.clock
        #: Reentrant: an object may be collected, and post its end, wherever a thread is.
        self._lock = threading.RLock()
        self._is_rung = False
        self._is_open = True
        reactor.watch(self, READ)

    @property
    def sock(self) -> Bell:
        """What the reactor watches."""
        return self._bell

    def post(self, act: Callable[[], None]) -> bool:
        """Have `act` called in the reactor's thread; for any thread. False after `close`."""
        with self._lock:
            if not self._is_open:
                return False
            self._acts.append(act)
            self._ring()
            return True

    def _ring(self) -> None:
        if not self._is_rung:
            self._bell.ring()
            self._is_rung = True  # last: an interrupt before it costs a ring, not all that follow

    def on_ready(self, mask: int) -> None:
        """Do what was posted, for one turn: thousands of calls shall not stop the heartbeats."""
        with self._lock:  # nobody is between ringing and noting it
            self._bell.answer()
            self._is_rung = False  # before looking: what is posted from now on rings again
        turn_ends_at = self._clock() + _TURN_S
        while self._acts:
            self._acts.popleft()()
            if self._acts and self._clock() > turn_ends_at:
                with self._lock:
                    self._ring()
                return

    def close(self) -> None:
        """Take nothing more; what was taken is done now. For the reactor's thread."""
        with self._lock:
            self._is_open = False
        while self._acts:
            try:
                self._acts.popleft()()
            except Exception:  # the thread ends, maybe by a bug: the others are still done
                logger.exception("what was left to do at the end")
        self._bell.close()
