"""Child processes of a command: started, told, read from, and never left behind.

Children get process groups of their own, so that Ctrl-C reaches the orchestrator alone and
it ends them in order. (If the orchestrator itself gets SIGKILL, a worker sees the end of its
standard input; a coordinator stays.)
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self

#: A child that was asked to end gets so long before it is killed.
TERMINATION_S = 3.0
#: Lines of a child's stderr kept for the report of a failure.
STDERR_LINES_MAX = 20

#: A coordinator has to say where it listens within this.
COORDINATOR_START_S = 20.0
_TICK_S = 0.1

#: Several processes share the cores: each one's BLAS has to keep to one thread.
ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line that a child wrote to its stdout."""

    child: str
    text: str


class Child:
    """One process, and the threads that read what it writes."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        lines: "queue.Queue[Line]",
        log: Path | None = None,
    ) -> None:
        """Run this Python with `arguments`; its stderr is appended to `log`, if there is one."""
        self.name = name
        self._errors: deque[str] = deque(maxlen=STDERR_LINES_MAX)
        self._log = log
        with open(log or os.devnull, "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if log is None else errors,
                text=True,
                env={**os.environ, **ONE_THREAD},
                process_group=0,
            )
        self._readers = [self._start_reader(self._read_lines, self._process.stdout, lines)]
        if log is None:
            self._readers.append(self._start_reader(self._read_errors, self._process.stderr))

    @staticmethod
    def _start_reader(*target_and_arguments: object) -> threading.Thread:
        target, *arguments = target_and_arguments
        reader = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        reader.start()
        return reader

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative after a signal. Its lines may still be on their way."""
        return self._process.poll()

    @property
    def is_drained(self) -> bool:
        """It has ended, and all it wrote is in the queue."""
        return self.exit_code is not None and not any(r.is_alive() for r in self._readers)

    @property
    def errors(self) -> str:
        """The last lines of its stderr."""
        if self._log is not None:
            with contextlib.suppress(OSError):
                lines = self._log.read_text(errors="replace").splitlines()
                return "\n".join(lines[-STDERR_LINES_MAX:])
        return "\n".join(self._errors)

    def tell(self, text: str) -> None:
        """Write a line to its standard input; nothing happens if it has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()

    def release(self) -> None:
        """Close its standard input: a worker takes that as the word to end."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def kill(self) -> None:
        """SIGKILL, as when a machine is taken away."""
        self._process.send_signal(signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM; `finish` makes sure."""
        self._process.terminate()

    def finish(self) -> None:
        """Wait for its end, by force if need be, and for the readers."""
        self.release()
        try:
            self._process.wait(TERMINATION_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join(TERMINATION_S)

    def _read_lines(self, stream: IO[str], lines: "queue.Queue[Line]") -> None:
        with stream:
            for text in stream:
                lines.put(Line(self.name, text))

    def _read_errors(self, stream: IO[str]) -> None:
        with stream:
            for text in stream:
                self._errors.append(text.rstrip())


class Children:
    """All children of a command; leaving the context ends them, whatever happened."""

    def __init__(self) -> None:
        self.lines: queue.Queue[Line] = queue.Queue()
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        """Nothing is started yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End every child: all are asked first, then each gets its time, unless in a hurry."""
        try:
            self.end(self._children)
        except BaseException:  # a second Ctrl-C
            for child in self._children:
                child.kill()
            raise

    def start(self, name: str, arguments: Sequence[str], log: Path | None = None) -> Child:
        """Run this Python with `arguments`."""
        self._children = [child for child in self._children if not child.is_drained]
        child = Child(name, arguments, self.lines, log)
        self._children.append(child)
        return child

    def end(self, children: Sequence[Child]) -> None:
        """Ask all of `children` to end, then make sure of each."""
        for child in children:
            if child.exit_code is None:
                child.terminate()
        for child in children:
            child.finish()


def await_address(children: Children, coordinator: Child) -> str | None:
    """Where a coordinator listens: its first line. None if it does not come.

    Lines of other children are lost: start them afterwards.
    """
    give_up_at = time.monotonic() + COORDINATOR_START_S
    while time.monotonic() < give_up_at and not coordinator.is_drained:
        try:
            line = children.lines.get(timeout=_TICK_S)
            fields = json.loads(line.text)
            if fields["event"] == "listening":
                return str(fields["address"])
        except (queue.Empty, ValueError, KeyError, TypeError):
            continue
    return None


@contextlib.contextmanager
def terminating_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, with its children."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in kept.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
