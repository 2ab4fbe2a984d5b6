"""The plain lines of a demo, from a story told by hand and a clock set by hand."""

import io

from rich.console import Console

from ringhaul.cli.demo.events import RoundDone
from ringhaul.cli.demo.story import Story
from ringhaul.cli.demo.view import HELD_BACK_S, PlainView

BEGIN_AT = 1000.0


class Page:
    """A plain view, and what it has printed."""

    def __init__(self) -> None:
        self.now = BEGIN_AT
        self.story = Story(BEGIN_AT, BEGIN_AT + 10.0)
        self._text = io.StringIO()
        self.view = PlainView(Console(file=self._text), clock=lambda: self.now)

    def refresh(self, at_s: float, phase: str = "training") -> list[str]:
        """All lines, once it was refreshed at that second."""
        self.now = BEGIN_AT + at_s
        self.view.refresh(self.story, phase)
        return self.lines

    @property
    def lines(self) -> list[str]:
        return [line.strip() for line in self._text.getvalue().splitlines()]


def round_done(at_s: float) -> RoundDone:
    return RoundDone(
        peer="a",
        at=BEGIN_AT + at_s,
        round=1,
        generation=1,
        rank=0,
        world_size=1,
        contributors=["a"],
        attempts=1,
        reduce_s=0.0,
        train_bits_per_byte=1.0,
        sample_bits_per_byte=None,
    )


def test_lines_stand_in_the_order_of_their_times_not_of_the_reports() -> None:
    page = Page()
    page.refresh(0.0)

    page.story.on_event(round_done(3.18))
    assert page.refresh(3.2) == ["-- training"]
    page.story.note(BEGIN_AT + 3.16, "b has finished")
    found = page.refresh(3.2 + HELD_BACK_S)

    assert found[1:] == [
        "3.16 s  b has finished",
        "3.18 s  round 1 is committed by a",
        "3.18 s  round 1, generation 1, 1 members, 1.000 bits per byte",
    ]
    assert page.refresh(9.0)[: len(found)] == found


def test_the_end_of_a_phase_holds_nothing_back() -> None:
    page = Page()
    page.refresh(0.0)
    page.story.note(BEGIN_AT + 5.0, "last")

    assert page.refresh(5.0, "judging") == ["-- training", "5.00 s  last", "-- judging"]


def test_the_end_of_a_demo_that_fails_holds_nothing_back() -> None:
    page = Page()
    with page.view:
        page.refresh(0.0)
        page.story.note(BEGIN_AT + 5.0, "last")
        page.refresh(5.0)

    assert page.lines == ["-- training", "5.00 s  last"]
