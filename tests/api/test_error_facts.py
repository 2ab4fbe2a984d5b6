"""Who is missing, in which phase, after how long, after how many bytes: errors and logs say."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul import (
    CallTimeout,
    CollectiveAborted,
    Communicator,
    MismatchError,
    RinghaulError,
    connect,
)
from ringhaul.core.coordinator.model import Options
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver, Logged

Members = Cluster[Communicator]


@pytest.fixture
def cluster() -> Iterator[Members]:
    with Cluster(
        lambda address: connect(address, min_world_size=2), Options(waiting_report_s=0.05)
    ) as cluster:
        yield cluster


def error_of(future: Future[object]) -> BaseException:
    error = future.exception(PATIENCE_S)
    assert error is not None
    return error


def begin_reduce(member: Driver[Communicator], count: int, timeout_s: float) -> Future[object]:
    return member.begin(lambda comm: comm.all_reduce(np.ones(count), timeout_s=timeout_s))


def test_a_timeout_carries_culprit_phase_seconds_and_bytes(cluster: Members) -> None:
    early, late = cluster.drivers(2)

    error = error_of(begin_reduce(early, 100_000, timeout_s=0.2))

    assert isinstance(error, CallTimeout)
    assert error.peers == (late.comm.peer_id,)
    assert error.phase == "moving data"
    assert error.seconds is not None
    assert error.seconds >= 0.2
    # of what goes without a grant, its half of the array
    assert error.wire_bytes is not None
    assert 0 < error.wire_bytes <= 400_000
    assert error.generation == 1
    with pytest.raises(CallTimeout) as caught:
        late.do(lambda comm: comm.all_reduce(np.ones(100_000)))
    # whether it had heard of the end when it called, or began and heard then
    assert caught.value.phase in ("waiting for a new ring", "moving data")
    assert caught.value.wire_bytes is not None
    assert caught.value.peers == (late.comm.peer_id,)


def test_a_timeout_of_a_barrier_says_that_it_waits_for_the_others(cluster: Members) -> None:
    early, late = cluster.drivers(2)

    error = error_of(early.begin(lambda comm: comm.barrier(timeout_s=0.1)))

    assert isinstance(error, CallTimeout)
    assert error.phase == "waiting for the others to finish"
    assert error.peers == (late.comm.peer_id,)


def test_a_timeout_of_admit_carries_the_same_facts(cluster: Members) -> None:
    early, late = cluster.drivers(2)
    early.do(lambda comm: comm.all_reduce_async(np.ones(1)))  # its admit is no newcomer's
    late.do(lambda comm: comm.all_reduce(np.ones(1)))

    error = error_of(early.begin(lambda comm: comm.admit(timeout_s=0.1)))

    assert isinstance(error, CallTimeout)
    assert error.phase == "admit"
    assert error.peers == (late.comm.peer_id,)
    assert error.seconds is not None
    assert error.seconds >= 0.1


def test_a_mismatch_and_a_lack_of_members_say_when_they_came(cluster: Members) -> None:
    a, b = cluster.drivers(2)
    first = begin_reduce(a, 10, timeout_s=PATIENCE_S)
    second = begin_reduce(b, 11, timeout_s=PATIENCE_S)
    for future in (first, second):
        error = error_of(future)
        assert isinstance(error, MismatchError)
        assert error.phase is not None
        assert error.seconds is not None

    with Logged("opened by repair"):
        b.do(Communicator.close)
        error = error_of(begin_reduce(a, 10, timeout_s=PATIENCE_S))

    assert isinstance(error, CollectiveAborted)
    assert error.phase == "waiting for a new ring"
    assert error.seconds is not None


def test_who_has_no_memory_for_the_result_is_named_and_all_stay_members(
    cluster: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    well, short = cluster.drivers(2)
    short_id = short.comm.peer_id
    buffers = short.comm._runtime._calls._buffers

    def lend(element_count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        raise MemoryError(f"no room for {element_count} of {dtype}")

    with monkeypatch.context() as patch:
        patch.setattr(buffers, "lend", lend)
        futures = [begin_reduce(member, 100, PATIENCE_S) for member in (well, short)]
        errors = [error_of(future) for future in futures]

    for error in errors:
        assert type(error) is RinghaulError
        assert f"{short_id}: out of memory (no room for 100 of float64)" in str(error)
    for future in [begin_reduce(member, 100, PATIENCE_S) for member in (well, short)]:
        future.result(PATIENCE_S)
    assert well.comm.generation == short.comm.generation == 1


class Warnings(Logged):
    """Only records that are seen without any set-up of logging."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            super().emit(record)


@pytest.mark.parametrize("call", ["barrier", "all_reduce", "admit"])
def test_a_blocking_call_says_whom_it_waits_for_as_a_warning(cluster: Members, call: str) -> None:
    early, late = cluster.drivers(2)
    late_id = late.comm.peer_id
    for member in (early, late):
        member.do(lambda comm: comm.all_reduce_async(np.ones(1)))

    def act(comm: Communicator) -> object:
        return comm.all_reduce(np.ones(5)) if call == "all_reduce" else getattr(comm, call)()

    with Warnings(f"s for {late_id}") as reported:
        waiting = early.begin(act)
        reported.wait()
    late.do(act)

    waiting.result(PATIENCE_S)


def test_an_interrupt_of_any_name_ends_the_call_for_all(cluster: Members) -> None:
    first, second = cluster.drivers(2)
    work = first.do(lambda comm: comm.all_reduce_async(np.ones(5)))

    first.comm._runtime.give_up(work._call, "\ud800" * 1500)

    with pytest.raises(CollectiveAborted, match=r"interrupted by .*\\ud800"):
        work.wait(PATIENCE_S)
    with pytest.raises(CollectiveAborted, match=r"interrupted by .*\\ud800"):
        second.do(lambda comm: comm.all_reduce(np.ones(5), timeout_s=PATIENCE_S))
