"""Readiness of many sockets in one trio task.

A task switch of trio per wake-up of each stream costs more than moving the bytes of a small
segment. So all data sockets share a selector of their own, whose descriptor one task waits
for, and are handled by plain calls until nothing is ready. Decides nothing about what is read.
"""

import selectors
import time
from typing import Protocol

import trio

from ringhaul.io.sockets import DataSocket

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE
#: So long sockets are handled in a row before the other tasks have their turn.
_TURN_S = 0.002


class Handler(Protocol):
    """Owns one socket. Raises nothing: it deals with the end of its stream itself."""

    sock: DataSocket

    def on_ready(self, mask: int) -> None:
        """The socket can be read or written, or has ended."""


class Reactor:
    """Calls the handlers of ready sockets. All methods are for the trio thread."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._masks: dict[int, int] = {}
        self._handlers: dict[int, Handler] = {}
        self._is_closed = False

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

    async def run(self) -> None:
        """Handle what is ready until cancelled."""
        waited_for: int = self._selector.fileno()
        try:
            while True:
                await trio.lowlevel.wait_readable(waited_for)
                turn_ends_at = time.perf_counter() + _TURN_S
                while ready := self._selector.select(0):
                    for key, mask in ready:
                        handler: Handler = key.data
                        if self._handlers.get(key.fd) is handler:  # else closed just now
                            handler.on_ready(mask)
                    if time.perf_counter() > turn_ends_at:
                        break
        finally:
            self._is_closed = True
            self._selector.close()
