"""Who is interrupted and calls `step` again goes on where it stopped, as the others do."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul.diloco import SGD, DelayedDiLoCo, DiLoCo, StreamingDiLoCo
from ringhaul.diloco.loop import OuterLoop
from ringhaul.testing.meetings import MeetingComm, MeetingGroup, MeetingWork, without_tallies

Array = NDArray[np.floating]
Make = Callable[[MeetingComm, dict[str, Array]], OuterLoop]
LOOPS: dict[str, Make] = {
    "sync": lambda comm, params: DiLoCo(comm, params, 1, optimizer=SGD(1.0)),
    "delayed": lambda comm, params: DelayedDiLoCo(comm, params, 1, optimizer=SGD(1.0)),
    "streaming": lambda comm, params: StreamingDiLoCo(
        comm, params, 2, fragments=1, overlap=1, mixing=0.0, optimizer=SGD(1.0)
    ),
}


class Interrupt(BaseException):
    """As KeyboardInterrupt, which pytest would take for its own."""


@dataclass(frozen=True)
class InterruptedComm(MeetingComm):
    """Its `interrupted_at`th posting is interrupted, before anything is sent."""

    interrupted_at: int = 0
    posted: list[str] = field(default_factory=list)
    calls: list[None] = field(default_factory=list)

    def all_reduce_async(self, array: Array, op: str = "sum", **options: Any) -> MeetingWork:  # noqa: ANN401
        self.calls.append(None)
        if len(self.calls) == self.interrupted_at:
            raise Interrupt
        self.posted.append(options["tag"])
        return super().all_reduce_async(array, op, **options)


def insist(act: Callable[[], object]) -> int:
    """Call `act` again as long as it is interrupted. How often was it?"""
    count = 0
    while True:
        try:
            act()
        except Interrupt:
            count += 1
        else:
            return count


@pytest.mark.parametrize("interrupted_at", [1, 2, 3, 4])
@pytest.mark.parametrize("loop", LOOPS)
def test_an_interrupt_while_an_average_is_posted_posts_nothing_twice(
    loop: str, interrupted_at: int
) -> None:
    ends = []
    for at in (0, interrupted_at):
        comm = InterruptedComm(MeetingGroup(["a"]), "a", interrupted_at=at)
        params: dict[str, Array] = {"w": np.array([10.0], np.float32)}
        outer = LOOPS[loop](comm, params)
        interrupt_count = 0
        for _ in range(6):
            params["w"] -= np.float32(1.0)
            interrupt_count += insist(outer.step)
        interrupt_count += insist(outer.finish)
        assert interrupt_count == (at > 0)
        ends.append((comm.posted, float(params["w"][0]), without_tallies(comm.group.log)))

    assert ends[0] == ends[1]
