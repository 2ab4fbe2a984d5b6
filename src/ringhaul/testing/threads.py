"""A coordinator and its peers in one process, each in a thread of its own, over loopback TCP.

Every wait is bounded: a call that hangs fails its test, and the threads do not keep the
process alive.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import trio

from ringhaul.io.coordinator_server import Options, serve_coordinator

#: Far longer than any call takes, also on a busy machine.
PATIENCE_S = 30.0


class Closable(Protocol):
    """What a driver drives: a communicator."""

    def close(self) -> None:
        """Leave the run."""


C = TypeVar("C", bound=Closable)
T = TypeVar("T")


class CoordinatorThread:
    """`serve_coordinator` in a thread, until `stop`."""

    def __init__(
        self,
        options: Options | None = None,
        *,
        port: int = 0,
        journal: Path | None = None,
        new: bool = True,
    ) -> None:
        self._serve = partial(
            serve_coordinator, "127.0.0.1", port, options=options, journal=journal, new=new
        )
        self._started: Future[str] = Future()
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.address = self._started.result(PATIENCE_S)

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            await self._serve(started=self._started.set_result)

    def stop(self) -> None:
        """Cancel it: all its connections close at once."""
        if self._thread.is_alive():
            assert self._token is not None
            self._token.run_sync_soon(self._scope.cancel)
            self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the coordinator does not end"


class Driver(Generic[C]):
    """A communicator and the one thread that calls it, from `connect` to `close`."""

    def __init__(self, connect: Callable[[], C]) -> None:
        #: The communicator, once `connect` has returned; or its error.
        self.joined: Future[C] = Future()
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._work.put(lambda: _settle(self.joined, connect))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (act := self._work.get()) is not None:
            act()

    @property
    def comm(self) -> C:
        """The communicator; waits for `connect`."""
        return self.joined.result(PATIENCE_S)

    def begin(self, act: Callable[[C], T]) -> Future[T]:
        """Have the thread do something with its communicator."""
        future: Future[T] = Future()
        self._work.put(lambda: _settle(future, lambda: act(self.joined.result(0))))
        return future

    def do(self, act: Callable[[C], T]) -> T:
        """The same, and wait for the result."""
        return self.begin(act).result(PATIENCE_S)

    def dismiss(self) -> None:
        """Close the communicator, if there is one, and end the thread."""
        self._work.put(lambda: self.joined.result(0).close() if _is_well(self.joined) else None)
        self._work.put(None)

    def wait_ended(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "a call does not end"


class Cluster(Generic[C]):
    """A coordinator and drivers; at the end of the block all of them leave.

    Args:
        connect: makes a communicator, given the coordinator's address.
    """

    def __init__(self, connect: Callable[[str], C], options: Options | None = None) -> None:
        self._connect = connect
        self.coordinator = CoordinatorThread(options)
        self.address = self.coordinator.address
        #: All that were ever started, in their order.
        self.members: list[Driver[C]] = []

    def driver(self, connect: Callable[[str], C] | None = None) -> Driver[C]:
        """Begin to connect one more peer."""
        make = connect or self._connect
        driver = Driver(lambda: make(self.address))
        self.members.append(driver)
        return driver

    def drivers(
        self, count: int, connect: Callable[[str], C] | None = None
    ) -> tuple[Driver[C], ...]:
        """Connect several peers, and wait until they are members."""
        drivers = tuple(self.driver(connect) for _ in range(count))
        gather(driver.joined for driver in drivers)
        return drivers

    def __enter__(self) -> Self:
        """Everybody leaves at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close all communicators at once, then stop the coordinator."""
        for driver in self.members:
            driver.dismiss()
        if error is None:
            for driver in self.members:
                driver.wait_ended()
        self.coordinator.stop()


def gather(futures: Iterable[Future[T]]) -> list[T]:
    """Wait for all; raises the first error."""
    return [future.result(PATIENCE_S) for future in list(futures)]


def together(drivers: Iterable[Driver[C]], act: Callable[[C], T]) -> list[T]:
    """All of them do the same at once; return the results in their order."""
    return gather([driver.begin(act) for driver in drivers])


def _settle(future: Future[T], act: Callable[[], T]) -> None:
    try:
        future.set_result(act())
    except BaseException as error:
        future.set_exception(error)


def _is_well(future: Future[T]) -> bool:
    return future.done() and future.exception() is None


class Logged(logging.Handler):
    """For as long as its block lasts: set when ringhaul has logged `text`."""

    def __init__(self, text: str) -> None:
        super().__init__(logging.INFO)
        self._text = text
        self._seen = threading.Event()
        self._logger = logging.getLogger("ringhaul")

    def emit(self, record: logging.LogRecord) -> None:
        """Look at one record."""
        if self._text in record.getMessage():
            self._seen.set()

    def __enter__(self) -> Self:
        """Begin to look."""
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the logger as it was."""
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)

    def wait(self) -> None:
        """Wait until it has been logged."""
        assert self._seen.wait(PATIENCE_S), f"not logged: {self._text}"
