"""Links of several streams over loopback TCP: where little or nothing moves.

Time is what `sweep` is told: nothing here depends on how fast the machine is.
"""

import time

import numpy as np
import pytest
import trio
import trio.lowlevel

from ringhaul import limits
from ringhaul.ids import Generation
from ringhaul.io.outgoing import OutgoingLink
from ringhaul.testing.two_sides import ELEMENTS, FAIL_AFTER_S, GENERATION, begin, two_sides, values


def let_pass(link: OutgoingLink, duration_s: float) -> None:
    """So much time passes in which nothing moves, though the process runs."""
    started_at = time.perf_counter()
    for count in range(int(duration_s / limits.SWEEP_INTERVAL_S)):
        link.sweep(started_at + count * limits.SWEEP_INTERVAL_S)


async def wait_under_way(link: OutgoingLink) -> None:
    while not any(stream.unacknowledged for stream in link.streams):
        await trio.lowlevel.checkpoint()


async def test_what_a_stalled_stream_holds_back_is_sent_on_another() -> None:
    async with two_sides(streams=3, unread=1) as sides:
        first, second = begin(sides, ELEMENTS)
        link = sides[0].outgoing
        stalled = link.streams[-1]
        while not (sides[0].is_done.is_set() and sides[1].is_done.is_set()):
            await trio.lowlevel.checkpoint()
            link.sweep(time.perf_counter() + 1.0)

        assert stalled.is_slow

    np.testing.assert_array_equal(first.result, values(2, ELEMENTS))
    np.testing.assert_array_equal(second.result, values(2, ELEMENTS))


async def test_a_stream_that_delivers_nothing_for_long_is_replaced() -> None:
    async with two_sides(streams=2, unread=1) as sides:
        list(begin(sides, ELEMENTS))
        link = sides[0].outgoing
        while not sides[0].is_troubled.is_set():
            await trio.lowlevel.checkpoint()
            for late_s in (limits.LINK_STALLED_S, limits.LINK_STALLED_S + 1.0):
                link.sweep(time.perf_counter() + late_s)

        assert sides[0].lost == ["stalled"]
        assert len(link.streams) == 1


async def test_a_link_on_which_nothing_moves_is_broken() -> None:
    async with two_sides(streams=1, unread=1) as sides:
        list(begin(sides, ELEMENTS))
        link = sides[0].outgoing
        await wait_under_way(link)
        let_pass(link, limits.LINK_STALLED_S - 1.0)
        assert not sides[0].broken

        let_pass(link, 3 * limits.LINK_STALLED_S)  # kernels may still have moved what they hold
        assert "stalled" in sides[0].broken[0]


async def test_time_in_which_the_process_did_not_run_is_not_held_against_a_link() -> None:
    async with two_sides(streams=1, unread=1) as sides:
        list(begin(sides, ELEMENTS))
        link = sides[0].outgoing
        await wait_under_way(link)
        let_pass(link, 1.0)
        link.sweep(time.perf_counter() + 100.0)
        link.sweep(time.perf_counter() + 101.0)

        assert not sides[0].broken


async def test_data_of_a_generation_that_opens_late_do_not_make_a_link_stalled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "HOLD_VALID_S", FAIL_AFTER_S)
    async with two_sides(streams=2) as sides:
        sides[1].plane.generation = Generation(0)
        (first,) = begin(sides[:1], ELEMENTS)  # type: ignore[arg-type]
        link = sides[0].outgoing
        while not any(stream.is_held(time.perf_counter()) for stream in link.streams):
            await trio.lowlevel.checkpoint()
        let_pass(link, limits.LINK_STALLED_S + 1.0)
        sides[1].plane.use_ring(GENERATION)
        list(begin(sides[1:], ELEMENTS))  # type: ignore[arg-type]
        for side in sides:
            await side.is_done.wait()

        assert sides[0].broken == sides[0].lost == []

    np.testing.assert_array_equal(first.result, values(2, ELEMENTS))


async def test_a_receiver_that_no_longer_says_that_it_waits_is_judged_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "HOLD_INTERVAL_S", FAIL_AFTER_S)
    async with two_sides(streams=1) as sides:
        sides[1].plane.generation = Generation(0)
        list(begin(sides[:1], ELEMENTS))  # type: ignore[arg-type]
        link = sides[0].outgoing
        await wait_under_way(link)
        let_pass(link, limits.HOLD_VALID_S + 3 * limits.LINK_STALLED_S)

        assert "stalled" in sides[0].broken[0]
