"""For each public call: one peer dies, stops, or loses its connections, in each phase of it.

The fault strikes at a named point inside the victim's own process, which says so before; the
others return, or raise the right error, in bounded time.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from ringhaul.communicator import Communicator
from ringhaul.errors import CollectiveAborted
from ringhaul.io.coordinator_server import Options
from ringhaul.testing import victim
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver, gather, together
from ringhaul.testing.victim import (
    AFTER,
    BEFORE,
    CALLS,
    DATA,
    FINISHED,
    VICTIM_WEIGHT,
    join,
    weight_of,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="resets connections as Linux allows it"),
]

#: Stopped peers are found out fast, and busy machines are still not mistaken for stopped.
OPTIONS = Options(
    heartbeat_interval_s=0.25,
    silence_busy_s=2.0,
    silence_idle_s=4.0,
    session_grace_s=2.5,
    proposal_s=5.0,
)
WITH_DATA = (BEFORE, "begun", DATA, FINISHED, AFTER)
POINTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(CALLS, WITH_DATA),
    "broadcast_from_victim": (BEFORE, "begun", FINISHED, AFTER),  # it receives nothing
    "barrier": (BEFORE, "begun", AFTER),
    "sync_state": (BEFORE, "begun", "state elected", FINISHED, AFTER),
    "admit": (BEFORE, "voted", AFTER),
    "close": (BEFORE, "leaving", AFTER),
    "connect": ("hello said", "ring proposed", "link ready", "ring opened"),
}
ALL = {1, 2, VICTIM_WEIGHT}
SURVIVORS = {1, 2}
Drivers = tuple[Driver[Communicator], ...]

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["ringhaul.testing.victim"])


class Victim:
    """A process that is struck at `point` of `call`."""

    def __init__(self, address: str, call: str, point: str, kind: str) -> None:
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=victim.run, args=(address, call, point, kind, theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        self._heard: list[tuple[Any, ...]] = []

    def hears(self, word: str, *, wait_s: float = 0.0) -> tuple[Any, ...] | None:
        """What it said with this word, if it has."""
        while True:
            for said in self._heard:
                if said[0] == word:
                    return said
            if not self.pipe.poll(wait_s):
                return None
            self._heard.append(self.pipe.recv())

    def expect(self, word: str) -> tuple[Any, ...]:
        said = self.hears(word, wait_s=PATIENCE_S)
        assert said is not None, f"no {word!r}, but {self._heard}"
        return said

    def end(self) -> None:
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(PATIENCE_S)


@contextlib.contextmanager
def survivors() -> Iterator[tuple[Cluster[Communicator], Drivers]]:
    """Two members, `w1` and `w2`, in this process."""
    with Cluster(lambda address: join(address, 1), OPTIONS) as cluster:
        first = cluster.driver(lambda address: join(address, 1))
        second = cluster.driver(lambda address: join(address, 2))
        gather(driver.joined for driver in (first, second))
        yield cluster, (first, second)


def outcome_of(future: "Future[tuple[str, ...]]") -> set[int] | type[BaseException]:
    try:
        return {weight_of(peer) for peer in future.result(PATIENCE_S)}
    except CollectiveAborted as error:
        return type(error)


def check_outcome(call: str, point: str, kind: str, outcome: set[int] | type) -> None:
    """What both survivors got."""
    if call in ("barrier", "sync_state", "admit", "close"):
        assert outcome == set()  # it returned
    elif kind == "cut" or point == AFTER:
        assert outcome == ALL
    elif call == "broadcast_from_victim" and outcome is CollectiveAborted:
        assert point != AFTER  # its root is lost
    elif point == BEFORE and call != "broadcast":  # which needs nothing of the last rank
        assert outcome == SURVIVORS
    else:  # what all survivors had finished is committed
        assert outcome in (SURVIVORS, ALL)


def strike(
    cluster: Cluster[Communicator], members: Drivers, call: str, point: str, kind: str
) -> None:
    """One cell of the matrix; afterwards the two survivors are as before."""
    struck = Victim(cluster.address, call, point, kind)
    try:
        if call == "connect":
            while struck.hears("reached") is None and members[0].comm.world_size < 3:
                together(members, lambda comm: comm.admit())
            struck.expect("reached")
        else:
            while members[0].comm.world_size < 3:
                together(members, lambda comm: comm.admit())
            make = CALLS["barrier" if call == "close" else call]
            futures = [driver.begin(make) for driver in members]
            struck.expect("reached")
            outcomes = [outcome_of(future) for future in futures]
            assert outcomes[0] == outcomes[1]
            check_outcome(call, point, kind, outcomes[0])
        if kind == "cut":
            check_recovery(members, struck, call)
        for _ in range(2):  # what all survivors had finished names the lost one, too
            together(members, lambda comm: comm.barrier())
        assert {driver.comm.world_size for driver in members} == {2}
    finally:
        struck.end()


def check_recovery(members: Drivers, struck: Victim, call: str) -> None:
    """A reset of all its connections costs a peer nothing."""
    while call == "connect" and members[0].comm.world_size < 3:
        together(members, lambda comm: comm.admit())
    _, contributors = struck.expect("done")
    assert {weight_of(peer) for peer in contributors} in (set(), ALL)
    if call != "close":
        assert {driver.comm.world_size for driver in members} == {3}
    struck.pipe.send("go")
    struck.expect("left")


@pytest.mark.parametrize("kind", ["kill", "cut"])
@pytest.mark.parametrize("call", POINTS)
def test_others_go_on_when_one_is_struck_in_each_phase_of(call: str, kind: str) -> None:
    with survivors() as (cluster, members):
        for point in POINTS[call]:
            strike(cluster, members, call, point, kind)


def strike_alone(call: str, point: str, kind: str) -> None:
    with survivors() as (cluster, members):
        strike(cluster, members, call, point, kind)


@pytest.mark.parametrize("call", POINTS)
def test_others_go_on_when_one_stops_in_each_phase_of(call: str) -> None:
    """At once, as each is found out by its silence only."""
    with ThreadPoolExecutor() as pool:
        cells = [pool.submit(strike_alone, call, point, "stop") for point in POINTS[call]]
        for cell in cells:
            cell.result()
