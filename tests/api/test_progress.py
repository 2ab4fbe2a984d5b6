import io
import threading
from typing import Any

import pytest

from ringhaul import progress as module
from ringhaul.io.progress import Progress
from ringhaul.io.signals import Signal


class Terminal(io.StringIO):
    """A terminal that remembers what was written; ends the call once it shows how far it is."""

    def __init__(self, ended: Signal | None = None, *, is_terminal: bool = True) -> None:
        super().__init__()
        self._ended = ended
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        count = super().write(text)
        if self._ended is not None and "MB" in self.getvalue():
            self._ended.set()
        return count


def test_a_long_transfer_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(module, "SHOWN_AFTER_S", 0.0)
    ended = Signal()
    terminal = Terminal(ended)

    module.wait_showing(ended, Progress(total_bytes=9_000_000, done_bytes=3_000_000), terminal)

    assert "shared state" in terminal.getvalue()
    assert "9.0 MB" in terminal.getvalue()


class Odd:
    """A log wrapper in the place of stderr, or one that breaks in the middle."""

    def __init__(self, ended: Signal, *, is_terminal: bool) -> None:
        self._ended = ended
        if is_terminal:
            self.isatty = lambda: True

    def write(self, text: str) -> int:
        self._ended.set()
        raise ValueError("I/O operation on closed file")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_an_odd_stderr_spoils_no_call(
    monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool
) -> None:
    monkeypatch.setattr(module, "SHOWN_AFTER_S", 0.0)
    ended = Signal()
    if not is_terminal:
        ended.set()

    odd: Any = Odd(ended, is_terminal=is_terminal)
    module.wait_showing(ended, Progress(total_bytes=9_000_000), odd)

    assert ended.is_set()


def test_a_short_transfer_shows_nothing() -> None:
    ended = Signal()
    ended.set()
    terminal = Terminal()

    module.wait_showing(ended, Progress(total_bytes=9_000_000), terminal)

    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("total_bytes", "is_terminal"), [(0, True), (9_000_000, False)], ids=["holder", "no terminal"]
)
def test_who_fetches_nothing_or_has_no_terminal_sees_nothing(
    monkeypatch: pytest.MonkeyPatch, total_bytes: int, is_terminal: bool
) -> None:
    monkeypatch.setattr(module, "SHOWN_AFTER_S", 0.0)
    ended = Signal()
    terminal = Terminal(is_terminal=is_terminal)
    waiting = threading.Thread(
        target=module.wait_showing, args=(ended, Progress(total_bytes=total_bytes), terminal)
    )
    waiting.start()
    ended.set()
    waiting.join(30)

    assert not waiting.is_alive()
    assert terminal.getvalue() == ""


def test_the_log_says_how_much_and_from_how_many() -> None:
    progress = Progress(total_bytes=2_000_000, done_bytes=1_000_000)
    progress.by_source.update({"a": 5, "b": 7})

    assert str(progress) == "1 of 2 MB of the shared state are here, from 2 peers"
