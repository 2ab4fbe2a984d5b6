"""What shows a command while it runs: a live page on a terminal, or plain lines; both contexts."""

from types import TracebackType
from typing import Self

from rich.live import Live


class PlainPage:
    """Lines below each other: nothing is taken, and nothing has to be given back."""

    def __enter__(self) -> Self:
        """Take nothing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give nothing back."""


class LivePage:
    """A page that is redrawn in place, and taken away at the end."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def __enter__(self) -> Self:
        """Start drawing."""
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the terminal in order."""
        self._live.stop()
