"""Real coordinators and peers as processes, for chaos tests: start, listen, kill.

Every peer contributes a power of two times a pattern, so that a sum names its contributors
exactly: `check_sum` compares with NumPy, element by element.
"""

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Event = dict[str, Any]


def contribution(index: int, count: int) -> NDArray[np.float32]:
    """What peer number `index` puts in: 2**index times 1, 2, ..., 7, 1, ..."""
    pattern = (np.arange(count, dtype=np.int64) % 7 + 1).astype(np.float32)
    return np.multiply(pattern, np.float32(2**index), out=pattern)


def check_sum(
    values: NDArray[np.float32], contributors: Sequence[str], pattern: NDArray[np.float32]
) -> bool:
    """Is this exactly the sum of these contributors (named `wINDEX-...`)?

    `pattern` is the contribution of peer number 0.
    """
    weight = np.float32(sum(2 ** int(peer.split("-")[0][1:]) for peer in contributors))
    block = 1 << 16
    return all(
        np.array_equal(values[i : i + block], pattern[i : i + block] * weight)
        for i in range(0, values.size, block)
    )


class Process:
    """A child process that prints JSON lines."""

    def __init__(self, *words: str) -> None:
        self._child = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._events: queue.Queue[Event | None] = queue.Queue()
        self.seen: list[Event] = []
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def _read_events(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as lines:
            for line in lines:
                event = json.loads(line)
                event["received_at"] = time.monotonic()
                self._events.put(event)
        self._events.put(None)

    def _read_errors(self) -> None:
        assert self._child.stderr is not None
        with self._child.stderr as lines:
            self.errors.extend(lines)

    def expect(self, kind: str, *, timeout_s: float = 30.0) -> Event:
        """Wait for the next event of this kind, past others."""
        return self.expect_any(kind, timeout_s=timeout_s)

    def expect_any(self, *kinds: str, timeout_s: float = 30.0) -> Event:
        """Wait for the next event of these kinds.

        Raises:
            AssertionError: it did not come; tells what came instead.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                event = None
            if event is None:
                story = self.seen[-5:], "".join(self.errors[-30:])
                raise AssertionError(f"none of {kinds} within {timeout_s} s: {story}")
            self.seen.append(event)
            if event["event"] in kinds:
                return event

    def send_signal(self, number: signal.Signals) -> float:
        """Send a signal; return when, on the monotonic clock."""
        at = time.monotonic()
        self._child.send_signal(number)
        return at

    def kill(self) -> float:
        """Send SIGKILL; return when."""
        return self.send_signal(signal.SIGKILL)

    def wait(self, *, timeout_s: float = 30.0) -> int:
        """Wait for the end; return the exit code."""
        code = self._child.wait(timeout_s)
        for reader in self._readers:
            reader.join(timeout_s)
        return code

    def __enter__(self) -> Self:
        """End the child at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill what is left."""
        if self._child.poll() is None:
            self._child.kill()
        self.wait()


class CoordinatorProcess(Process):
    """A coordinator on a free port, of the loopback interface unless `host` says otherwise.

    With options it is not told that the run is new: an earlier one may have died at `port`.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, options: Sequence[str] = ()) -> None:
        words = options or ("--new",)
        super().__init__(
            *("-m", "ringhaul", "coordinator", "--listen", f"{host}:{port}", "--json", *words)
        )
        self.address: str = self.expect("listening")["address"]


class PeerProcess(Process):
    """A peer that runs `ringhaul.testing.peer`: loops, checks, reports."""

    def __init__(self, address: str, index: int, *options: str) -> None:
        super().__init__("-m", "ringhaul.testing.peer", address, str(index), *options)
        self.index = index


@contextlib.contextmanager
def ring(
    coordinator: CoordinatorProcess, world_size: int, *options: str
) -> Iterator[list[PeerProcess]]:
    """So many members that admit, reduce and check in a loop."""
    with contextlib.ExitStack() as stack:
        started = []
        for index in range(world_size):
            peer = PeerProcess(coordinator.address, index, "--admit", *options)
            started.append(stack.enter_context(peer))
            if index == 0:
                peer.expect("joined")
        for peer in started:
            first_round_of(peer, world_size)
        yield started


def first_round_of(peer: PeerProcess, world_size: int) -> dict[str, object]:
    """The first committed round with so many contributors; all before are checked too."""
    while True:
        event = peer.expect("round")
        assert event["right"], event
        if len(event["contributors"]) == world_size:
            return event
