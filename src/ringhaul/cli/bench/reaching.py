"""Says when the coordinator is reached, while `connect` is still waiting to be let in."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

import trio

from ringhaul.errors import ConnectError
from ringhaul.io.address import parse_address
from ringhaul.io.status_client import fetch_status
from ringhaul.limits import DEFAULT_PORT

#: For an answer; then it is asked again.
ANSWER_S = 2.0
PAUSE_S = 0.5
THREAD_NAME = "ringhaul-bench"


def address_of(address: str | None) -> str:
    """Where the coordinator is, as `connect` takes it."""
    return address or os.environ.get("RINGHAUL_COORDINATOR") or f"127.0.0.1:{DEFAULT_PORT}"


@contextlib.contextmanager
def telling_when_reached(address: str, tell: Callable[[], None]) -> Iterator[None]:
    """Ask for the coordinator's status beside the caller; call `tell` at the first answer.

    `tell` is called in another thread, once, and not after the context has ended. That nobody
    answers is for the caller's own `connect` to report.
    """
    host, port = parse_address(address, DEFAULT_PORT)
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                trio.run(fetch_status, host, port, ANSWER_S)
            except ConnectError:
                over.wait(PAUSE_S)
                continue
            if not over.is_set():
                tell()
            return

    thread = threading.Thread(target=ask, name=THREAD_NAME, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
