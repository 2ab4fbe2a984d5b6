"""Shows a demo while it runs: a live page on a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from ringhaul.cli.demo.story import Note, Story
from ringhaul.cli.pages import LivePage, PlainPage

CHART_WIDTH = 64
CHART_HEIGHT = 8
#: Lines of the timeline that stay in sight.
NOTES_SHOWN = 10
#: Plain output says how far training is after so many seconds.
PROGRESS_INTERVAL_S = 2.0
#: A report is here by then, on a busy machine too; else its line stands after younger ones.
HELD_BACK_S = 0.5

_EIGHTHS = " ▁▂▃▄▅▆▇█"


class View(Protocol):
    """Shows a story again and again; a context, so that the terminal is left in order."""

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

    def refresh(self, story: Story, phase: str) -> None:
        """Show what is new. `phase` says in a few words what is going on."""
        ...


class SilentView(PlainPage):
    """Shows nothing: for `--json`."""

    def refresh(self, story: Story, phase: str) -> None:
        """Do nothing."""


class PlainView(PlainPage):
    """One line for each event, and one for progress now and then; by the time they happened.

    Reports of several processes come in no order: a line is held back until none from before it
    is to be expected.

    Args:
        console: where to print.
        clock: seconds since the Unix epoch, as the instants of a story.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.time) -> None:
        self._console = console
        self._clock = clock
        self._taken_count = 0
        self._held: list[Note] = []
        self._phase = ""
        self._progress_at = 0.0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Print what is still held back."""
        self._print_until(math.inf)

    def refresh(self, story: Story, phase: str) -> None:
        """Print what was not printed yet, but for the last moment."""
        now = self._clock()
        self._held += story.notes[self._taken_count :]
        self._taken_count = len(story.notes)
        latest = story.latest
        if phase != self._phase:
            self._phase = phase
            self._print_until(math.inf)
            self._print(f"-- {phase}")
        elif now >= self._progress_at and latest is not None and not story.finished:
            self._progress_at = now + PROGRESS_INTERVAL_S
            self._held.append(Note(latest.at - story.begin_at, _progress(story)))
        self._print_until(now - story.begin_at - HELD_BACK_S)

    def _print_until(self, at_s: float) -> None:
        """Print and forget the lines up to an instant."""
        self._held.sort(key=lambda note: note.at_s)
        while self._held and self._held[0].at_s <= at_s:
            note = self._held.pop(0)
            self._print(f"{note.at_s:6.2f} s  {note.text}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveView(LivePage):
    """The ring, the loss curve and the last events, redrawn in place."""

    def __init__(self, console: Console) -> None:
        super().__init__(Live(console=console, refresh_per_second=8, transient=True))

    def refresh(self, story: Story, phase: str) -> None:
        """Draw the page again."""
        self._live.update(_page(story, phase))


def choose_view(console: Console, *, is_silent: bool) -> View:
    """The live page if somebody looks at a terminal."""
    if is_silent:
        return SilentView()
    return LiveView(console) if console.is_terminal else PlainView(console)


def chart(points: list[tuple[float, float]], width: int, height: int, span_s: float) -> list[str]:
    """Columns of blocks, `height` lines of `width` characters; the newest value up to a column.

    Args:
        points: (seconds, value), by time.
        width: characters; column c shows the time from c/width to (c+1)/width of `span_s`.
        height: lines; the highest value fills them, zero is at the bottom.
        span_s: seconds that the whole width stands for.
    """
    columns = [0.0] * width
    shown_to = 0
    for at_s, value in points:
        column = min(max(int(at_s / span_s * width), 0), width - 1)
        # Columns without a value of their own repeat the one before.
        for skipped in range(shown_to + 1, column):
            columns[skipped] = columns[shown_to]
        columns[column] = value
        shown_to = column
    top = max(columns, default=0.0)
    if top <= 0.0:
        return [" " * width] * height
    eighths = [round(value / top * height * 8) for value in columns]
    return [
        "".join(_EIGHTHS[min(max(count - 8 * line, 0), 8)] for count in eighths)
        for line in reversed(range(height))
    ]


def _progress(story: Story) -> str:
    """One line on where training is."""
    latest = story.latest
    if latest is None:
        return "waiting for the first round"
    return (
        f"round {latest.round}, generation {latest.generation}, {latest.world_size} members, "
        f"{latest.train_bits_per_byte:.3f} bits per byte"
    )


def _page(story: Story, phase: str) -> RenderableType:
    """Everything, top to bottom."""
    curve = chart(story.curve, CHART_WIDTH, CHART_HEIGHT, story.end_at - story.begin_at)
    notes = [f"{note.at_s:6.2f} s  {note.text}" for note in story.timeline[-NOTES_SHOWN:]]
    return Group(
        Panel(Text(_ring(story)), title=f"ringhaul demo: {phase}", title_align="left"),
        Panel(
            Text("\n".join(curve), style="cyan"),
            title=_progress(story),
            title_align="left",
            subtitle="training loss by time",
            subtitle_align="right",
        ),
        Panel(Text("\n".join(notes)), title="events", title_align="left"),
    )


def _ring(story: Story) -> str:
    """Peers by rank, as they stood in the newest round, and who is not in it."""
    latest = story.latest
    if latest is None:
        return "no round yet"
    members = [story.name_of(peer_id) for peer_id in latest.contributors]
    ring = " -> ".join(f"{name} ({rank})" for rank, name in enumerate(members))
    killed = "" if story.killed is None else f"\nkilled: {story.killed.peer}"
    return f"{ring} -> {members[0]}{killed}"
