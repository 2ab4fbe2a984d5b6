"""The demo's child processes: started, read from, and never left behind.

Children get process groups of their own, so that Ctrl-C reaches the orchestrator alone and
it ends them in order. (Nothing can be done if the orchestrator itself gets SIGKILL: the
workers then stop at their deadline, the coordinator stays.)
"""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self

#: A child that was asked to end gets so long before it is killed.
TERMINATION_S = 3.0
#: Lines of a child's stderr kept for the report of a failure.
STDERR_LINES_MAX = 20

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
    """One process, and two threads that read what it writes."""

    def __init__(self, name: str, arguments: Sequence[str], lines: "queue.Queue[Line]") -> None:
        self.name = name
        self._errors: deque[str] = deque(maxlen=STDERR_LINES_MAX)
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **ONE_THREAD},
            process_group=0,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = (
            threading.Thread(
                target=self._read_lines, args=(self._process.stdout, lines), daemon=True
            ),
            threading.Thread(target=self._read_errors, args=(self._process.stderr,), daemon=True),
        )
        for reader in self._readers:
            reader.start()

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
        return "\n".join(self._errors)

    def release(self) -> None:
        """Close its standard input: a worker takes that as the word to end."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def kill(self) -> None:
        """SIGKILL, as when a machine is taken away."""
        self._process.send_signal(signal.SIGKILL)

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
    """All children of a demo; leaving the context ends them, whatever happened."""

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

    def start(self, name: str, arguments: Sequence[str]) -> Child:
        """Run this Python with `arguments`."""
        child = Child(name, arguments, self.lines)
        self._children.append(child)
        return child

    def end(self, children: Sequence[Child]) -> None:
        """Ask all of `children` to end, then make sure of each."""
        for child in children:
            if child.exit_code is None:
                child.terminate()
        for child in children:
            child.finish()
