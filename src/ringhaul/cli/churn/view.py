"""Shows a churn test while it runs: a live page on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ringhaul.cli.pages import LivePage, PlainPage

if TYPE_CHECKING:
    from ringhaul.cli.churn.orchestrator import ChurnTest

DEEDS_SHOWN = 12
PROGRESS_INTERVAL_S = 5.0
REFRESH_INTERVAL_S = 0.25


class View(Protocol):
    """Shows a test again and again; a context, so that the terminal is left in order."""

    def __enter__(self) -> Self:
        """Take the terminal."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give it back."""
        ...

    def refresh(self, test: "ChurnTest") -> None:
        """Show what is new."""
        ...


class PlainView(PlainPage):
    """A line now and then; none at all if it is silent."""

    def __init__(self, console: Console, *, is_silent: bool) -> None:
        self._console = console
        self._is_silent = is_silent
        self._due_at = 0.0

    def refresh(self, test: "ChurnTest") -> None:
        """Print where the test is."""
        now = time.monotonic()
        if self._is_silent or now < self._due_at:
            return
        self._due_at = now + PROGRESS_INTERVAL_S
        line = f"{now - test.began_at:6.1f} s  {test.phase}; {progress(test)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveView(LivePage):
    """Peers, numbers and the last faults, redrawn in place."""

    def __init__(self, console: Console) -> None:
        super().__init__(Live(console=console, auto_refresh=False, transient=True))
        self._due_at = 0.0

    def refresh(self, test: "ChurnTest") -> None:
        """Draw the page again, if it is old."""
        now = time.monotonic()
        if now >= self._due_at:
            self._due_at = now + REFRESH_INTERVAL_S
            self._live.update(_page(test, now), refresh=True)


def choose_view(console: Console, *, is_silent: bool) -> View:
    """The live page if somebody looks at a terminal."""
    if console.is_terminal and not is_silent:
        return LiveView(console)
    return PlainView(console, is_silent=is_silent)


def progress(test: "ChurnTest") -> str:
    """One line on where a test is."""
    record = test.record
    return (
        f"{len(test.members())} peers, round {record.rounds}, generation {record.generation}, "
        f"{record.calls:,} calls checked, {sum(record.faults.values())} faults, "
        f"{len(test.problems)} problems"
    )


def _page(test: "ChurnTest", now: float) -> RenderableType:
    peers = Table(expand=True, box=None)
    for column in ("peer", "is", "member for", "last heard"):
        peers.add_column(column)
    for worker in test.members():
        since = "" if worker.joined_at is None else f"{now - worker.joined_at:.1f} s"
        peers.add_row(worker.name, worker.phase.value, since, f"{now - worker.heard_at:.2f} s")
    deeds = [
        f"{deed.at - test.began_at:7.2f} s  {deed.kind:<12}{deed.peer} {deed.detail}"
        for deed in list(test.record.deeds)[-DEEDS_SHOWN:]
    ]
    title = f"ringhaul churn, {now - test.began_at:.0f} s: {test.phase}"
    parts: list[RenderableType] = [
        Panel(peers, title=title, title_align="left"),
        Panel(Text("\n".join(deeds)), title="faults", title_align="left"),
        Panel(Text(progress(test)), title="checked", title_align="left"),
    ]
    if test.problems:
        parts.append(Panel(Text("\n".join(test.problems[:5]), style="red"), title="WRONG"))
    return Group(*parts)
