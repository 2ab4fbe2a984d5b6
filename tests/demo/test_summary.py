"""The conclusions of a demo, from stories told by hand."""

import json
from collections.abc import Sequence

import pytest

from ringhaul.cli.demo.events import (
    Connected,
    Evaluated,
    Event,
    Finished,
    RoundDone,
    decode,
    encode,
)
from ringhaul.cli.demo.options import DemoOptions
from ringhaul.cli.demo.story import Story
from ringhaul.cli.demo.summary import Summary, Yardsticks, summarize
from ringhaul.cli.demo.view import chart

OPTIONS = DemoOptions(peers=3, seconds=10.0)
MARKS = Yardsticks(
    held_out_bytes=1000,
    held_out_files=2,
    core_count=2,
    before=8.0,
    alone=2.5,
    alone_steps=400,
    gzip=2.2,
)
BEGIN_AT = 1000.0


def connected(peer: str, at_s: float, world_size: int = 3) -> Connected:
    return Connected(
        peer=peer,
        at=BEGIN_AT + at_s,
        peer_id=f"{peer}-id",
        generation=1,
        rank=0,
        world_size=world_size,
    )


def round_done(
    peer: str, at_s: float, number: int, ring: Sequence[str], reduce_s: float = 0.01
) -> RoundDone:
    return RoundDone(
        peer=peer,
        at=BEGIN_AT + at_s,
        round=number,
        generation=1,
        rank=0,
        world_size=len(ring),
        contributors=[f"{name}-id" for name in ring],
        attempts=1,
        reduce_s=reduce_s,
        train_bits_per_byte=8.0 / number,
        sample_bits_per_byte=None,
    )


def finished(peer: str, digest: str = "same") -> Finished:
    return Finished(peer=peer, at=BEGIN_AT + 10.0, steps=100, rounds=6, rank=0, digest=digest)


def story_that_went_well() -> Story:
    """p3 is killed at 4.5 s, p4 starts at 6 s; one round a second."""
    story = Story(BEGIN_AT, BEGIN_AT + 10.0)
    for peer in ("p1", "p2", "p3"):
        story.on_event(connected(peer, 0.5))
    for number in (1, 2, 3, 4):
        for peer in ("p1", "p2", "p3"):
            story.on_event(round_done(peer, float(number), number, ["p1", "p2", "p3"]))
    story.on_killed("p3", BEGIN_AT + 4.5)
    story.on_event(round_done("p1", 5.2, 5, ["p1", "p2"], reduce_s=0.03))
    story.on_event(round_done("p2", 5.3, 5, ["p1", "p2"], reduce_s=0.04))
    story.on_joined("p4", BEGIN_AT + 6.0)
    story.on_event(connected("p4", 7.0))
    for peer in ("p1", "p2", "p4"):
        story.on_event(round_done(peer, 8.0, 6, ["p1", "p2", "p4"]))
    for peer in ("p1", "p2", "p4"):
        story.on_event(finished(peer))
    story.on_event(Evaluated(peer="p1", at=BEGIN_AT + 11.0, bits_per_byte=2.4))
    return story


def conclude(story: Story) -> Summary:
    return summarize(OPTIONS, story, MARKS)


def test_a_demo_that_went_well_has_no_problems() -> None:
    summary = conclude(story_that_went_well())

    assert summary.problems == []
    assert summary.is_identical
    assert (summary.after, summary.rounds, summary.steps) == (2.4, 6, 300)
    assert json.loads(json.dumps(summary.as_json()))["ok"] is True


def test_recovery_is_from_the_kill_to_the_slowest_survivors_round_without_the_victim() -> None:
    recovery = conclude(story_that_went_well()).recovery

    assert recovery is not None
    assert recovery.peer == "p3"
    assert recovery.recovery_s == pytest.approx(0.8)
    assert recovery.usual_round_s == pytest.approx(1.0)
    assert recovery.reduce_excess_s == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("reduce_s", "said"),
    [
        (0.005, "took no longer than usual"),
        (0.0101, "took no longer than usual"),
        (0.04, "took 30 ms more than usual"),
    ],
)
def test_an_all_reduce_after_a_kill_is_not_said_to_take_less_than_nothing_more(
    reduce_s: float, said: str
) -> None:
    story = story_that_went_well()
    story.rounds["p2"][4] = round_done("p2", 5.3, 5, ["p1", "p2"], reduce_s=reduce_s)

    assert said in conclude(story).as_text()


def test_the_table_says_how_long_the_training_was_not_how_long_it_should_have_been() -> None:
    story = story_that_went_well()
    story.end_at = BEGIN_AT + 27.04

    text = conclude(story).as_text()

    assert "ring of 3, 27 s, 300 steps" in text
    assert "one process, 27 s, 400 steps" in text


def test_a_round_that_the_victim_was_part_of_is_no_recovery() -> None:
    story = story_that_went_well()
    for peer in ("p1", "p2"):
        at_kill = round_done(peer, 4.6, 5, ["p1", "p2", "p3"])
        story.rounds[peer].insert(4, at_kill)

    recovery = conclude(story).recovery

    assert recovery is not None
    assert recovery.recovery_s == pytest.approx(0.8)


def test_a_join_is_timed_to_the_state_and_to_the_first_round() -> None:
    join = conclude(story_that_went_well()).join

    assert join is not None
    assert (join.started_at_s, join.member_s, join.first_round_s) == (6.0, 1.0, 1.0)


def test_the_timeline_names_every_change_of_the_ring_once() -> None:
    texts = [note.text for note in conclude(story_that_went_well()).timeline]

    assert [text for text in texts if text.startswith("round")] == [
        "round 1 is committed by p1 > p2 > p3",
        "round 5 is committed by p1 > p2",
        "round 6 is committed by p1 > p2 > p4",
    ]


def test_different_parameters_are_a_problem_that_names_the_peers() -> None:
    story = story_that_went_well()
    story.on_event(finished("p2", digest="other"))

    summary = conclude(story)

    assert not summary.is_identical
    assert summary.problems == ["the peers' parameters differ: same: p1, p4; other: p2"]
    assert "DIFFERENT" in summary.as_text()


def test_a_peer_that_did_not_finish_is_a_problem() -> None:
    story = story_that_went_well()
    del story.finished["p4"]

    assert conclude(story).problems == ["did not finish: p4"]


def test_a_kill_without_a_round_after_it_is_a_problem() -> None:
    story = story_that_went_well()
    story.killed = None

    assert "no round was committed after a kill" in conclude(story).problems


def test_a_join_without_a_round_is_a_problem() -> None:
    story = story_that_went_well()
    del story.rounds["p4"]

    assert conclude(story).problems == ["no peer joined in the middle and took part in a round"]


def test_a_loss_that_did_not_fall_is_a_problem() -> None:
    story = story_that_went_well()
    story.on_event(Evaluated(peer="p1", at=BEGIN_AT + 11.0, bits_per_byte=float("nan")))

    assert conclude(story).problems == ["the loss did not fall: 8.000 before, nan after"]


def test_problems_of_the_run_are_reported() -> None:
    story = story_that_went_well()
    story.on_problem(BEGIN_AT + 3.0, "p1 ended with 1: why")

    summary = conclude(story)

    assert summary.problems == ["p1 ended with 1: why"]
    assert summary.as_json()["ok"] is False


@pytest.mark.parametrize(
    "event", [connected("a", 1.0), round_done("a", 1.0, 2, ["a"]), finished("a")]
)
def test_events_survive_their_line(event: Event) -> None:
    assert decode(encode(event)) == event


@pytest.mark.parametrize("line", ["", "warning", "[]", "{}", '{"event": "round"}', "3"])
def test_other_lines_are_no_events(line: str) -> None:
    assert decode(line) is None


def test_a_chart_shows_the_newest_value_of_each_column() -> None:
    points = [(0.0, 4.0), (2.0, 8.0), (2.5, 2.0), (3.0, 1.0)]

    # Highest 4 of two lines of eight eighths each: 16, 16 again, 8, 4, and nothing yet.
    assert chart(points, width=5, height=2, span_s=5.0) == ["██   ", "███▄ "]


def test_options_that_cannot_show_anything_are_refused() -> None:
    with pytest.raises(ValueError, match="2 are needed"):
        DemoOptions(peers=1)
    with pytest.raises(ValueError, match="seconds"):
        DemoOptions(seconds=float("nan"))
    assert DemoOptions(peers=1, kill=False).peers == 1
