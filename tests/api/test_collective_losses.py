"""Members that are lost in `broadcast`, `all_gather`, `reduce_scatter`; timeouts, mismatches.

A member is lost in the middle: the others are in the call, and wait for it.
"""

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from ringhaul import (
    CallTimeout,
    CollectiveAborted,
    Communicator,
    ErrorFeedback,
    MismatchError,
    RinghaulError,
    connect,
)
from ringhaul.core.coordinator.model import Options
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver, Logged, gather, together

Members = Cluster[Communicator]
Member = Driver[Communicator]
Call = Callable[[Communicator], Any]

#: Some segments a chunk, and more than is sent before the receiver has posted the call.
COUNT = 3_000_001


@pytest.fixture
def cluster() -> Iterator[Members]:
    with Cluster(connect, Options(waiting_report_s=0.05)) as cluster:
        yield cluster


@pytest.fixture
def ring(cluster: Members) -> Sequence[Member]:
    """Three members, by rank, that go on down to one."""
    (first,) = cluster.drivers(1)
    others = [cluster.driver() for _ in range(2)]
    wait_pending(first, 2)
    first.do(Communicator.admit)
    gather(driver.joined for driver in others)
    members = sorted((first, *others), key=lambda member: member.comm.rank)
    together(members, Communicator.barrier)
    return members


def wait_pending(member: Member, count: int) -> None:
    """Call barriers, alone, until so many wait to be admitted."""
    deadline = time.monotonic() + PATIENCE_S
    while member.comm.pending_peers != count:
        assert time.monotonic() < deadline, "nobody comes"
        member.do(Communicator.barrier)


def values(rank: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.full(COUNT, 2.0**rank, np.float32)


def error_of(future: Future[Any]) -> RinghaulError:
    error = future.exception(PATIENCE_S)
    assert isinstance(error, RinghaulError), error
    return error


def begin_and_lose(ring: Sequence[Member], lost: int, calls: dict[int, Call]) -> list[Future[Any]]:
    """Some ranks begin; the coordinator says that they wait; then another leaves."""
    with Logged("waits for") as waiting:
        begun = [ring[rank].begin(call) for rank, call in calls.items()]
        waiting.wait()
    ring[lost].do(Communicator.close)
    return begun


def assert_well(members: Sequence[Member]) -> None:
    """They see the same ring, and the next operation is right."""
    sums = together(members, lambda comm: float(comm.reduce_scatter(np.ones(2)).sum()))
    assert sum(sums) == 2.0 * len(members)
    assert {member.comm.world_size for member in members} == {len(members)}
    assert len({member.comm.generation for member in members}) == 1


# -- the root ----------------------------------------------------------------------------------


@pytest.mark.parametrize("on_loss", ["retry", "raise"])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_all_raise_if_the_root_is_lost_in_the_middle(
    ring: Sequence[Member], lost: int, on_loss: str
) -> None:
    root_id = ring[lost].comm.peer_id
    ranks = [rank for rank in range(3) if rank != lost]
    arrays = {rank: values(rank) for rank in ranks}

    def broadcast(rank: int) -> Call:
        return lambda comm: comm.broadcast(arrays[rank], lost, on_loss=on_loss)

    begun = begin_and_lose(ring, lost, {rank: broadcast(rank) for rank in ranks})

    for rank, future in zip(ranks, begun, strict=True):
        error = error_of(future)
        assert isinstance(error, CollectiveAborted)
        assert error.peers == (root_id,)
        assert "the root" in str(error)
        np.testing.assert_array_equal(arrays[rank], values(rank))
        assert ring[rank].comm.world_size == 2
    assert_well([ring[rank] for rank in ranks])


def test_who_comes_later_to_a_broadcast_whose_root_is_lost_raises_too(
    ring: Sequence[Member],
) -> None:
    first, second, root = ring
    root_id = root.comm.peer_id
    (begun,) = begin_and_lose(ring, 2, {0: lambda comm: comm.broadcast(values(0), 2)})
    assert isinstance(error_of(begun), CollectiveAborted)
    array = values(1)

    with pytest.raises(CollectiveAborted) as caught:
        second.do(lambda comm: comm.broadcast(array, 2))

    assert caught.value.peers == (root_id,)
    np.testing.assert_array_equal(array, values(1))
    assert first.comm.generation == second.comm.generation
    assert_well((first, second))


def test_a_rank_that_is_nobody_s_any_more_is_a_lost_root_for_all(ring: Sequence[Member]) -> None:
    first, second, root = ring
    root_id = root.comm.peer_id
    with Logged("opened by repair") as repaired:
        root.do(Communicator.close)
        repaired.wait()
    assert first.comm.world_size == 3  # it has not heard of it yet

    for member in (first, second):  # one after the other: nobody waits for anybody
        with pytest.raises(CollectiveAborted) as caught:
            member.do(lambda comm: comm.broadcast(values(0), 2))
        assert caught.value.peers == (root_id,)
        assert member.comm.world_size == 2
    with pytest.raises(ValueError, match="from 0 to 1, not 2"):
        first.do(lambda comm: comm.broadcast(values(0), 2))
    assert_well((first, second))


def test_a_root_that_is_killed_in_the_middle_is_noticed_at_once(cluster: Members) -> None:
    (first,) = cluster.drivers(1)
    script = """
        import sys, numpy, ringhaul
        comm = ringhaul.connect(sys.argv[1])
        comm.broadcast(numpy.ones(3_000_001, numpy.float32), comm.rank)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), cluster.address])
    try:
        wait_pending(first, 1)
        last = cluster.driver()
        wait_pending(first, 2)
        first.do(Communicator.admit)
        assert last.comm.rank == 2  # on the way from the root to the first, and not in the call
        array = values(0)
        with Logged("waits for") as waiting:
            begun = first.begin(lambda comm: comm.broadcast(array, 1))
            waiting.wait()
        child.kill()
        killed_at = time.monotonic()

        assert isinstance(error_of(begun), CollectiveAborted)
        assert time.monotonic() - killed_at < 4.0
        np.testing.assert_array_equal(array, values(0))
        with pytest.raises(CollectiveAborted, match="the root"):
            last.do(lambda comm: comm.broadcast(values(2), 1))
        assert_well((first, last))
    finally:
        child.kill()
        child.wait()


# -- another member ----------------------------------------------------------------------------


@pytest.mark.parametrize(("root", "lost"), [(2, 0), (0, 1), (1, 2)])
def test_a_broadcast_that_loses_another_is_run_again_from_the_same_root(
    ring: Sequence[Member], root: int, lost: int
) -> None:
    ranks = [rank for rank in range(3) if rank != lost]
    arrays = {rank: values(rank) for rank in ranks}

    def broadcast(rank: int) -> Call:
        return lambda comm: comm.broadcast(arrays[rank], root)  # its rank changes, if 0 is lost

    begun = begin_and_lose(ring, lost, {rank: broadcast(rank) for rank in ranks})

    infos = gather(begun)
    assert [info.world_size for info in infos] == [2, 2]
    assert min(info.attempts for info in infos) >= 2
    for rank in ranks:
        np.testing.assert_array_equal(arrays[rank], values(root))
    assert_well([ring[rank] for rank in ranks])


@pytest.mark.parametrize("has_out", [False, True])
def test_rows_of_an_all_gather_are_those_of_the_survivors(
    ring: Sequence[Member], has_out: bool
) -> None:
    outs = [np.empty((3, COUNT), np.float32) if has_out else None for _ in ring]

    def all_gather(rank: int) -> Call:
        return lambda comm: comm.all_gather(values(rank), out=outs[rank])

    begun = begin_and_lose(ring, 0, {rank: all_gather(rank) for rank in (1, 2)})

    for rank, rows in zip((1, 2), gather(begun), strict=True):
        assert rows.shape == (2, COUNT)
        assert ring[rank].comm.rank == rank - 1
        np.testing.assert_array_equal(rows, [values(1), values(2)])
    assert_well(ring[1:])


@pytest.mark.parametrize("out_count", [None, -(-COUNT // 3), COUNT])
def test_chunks_of_a_reduce_scatter_are_cut_for_the_survivors(
    ring: Sequence[Member], out_count: int | None
) -> None:
    outs = [None if out_count is None else np.empty(out_count, np.float32) for _ in ring]

    def reduce_scatter(rank: int) -> Call:
        return lambda comm: comm.reduce_scatter(values(rank), "avg", out=outs[rank])

    begun = begin_and_lose(ring, 1, {rank: reduce_scatter(rank) for rank in (0, 2)})

    wanted = np.array_split(np.full(COUNT, 2.5, np.float32), 2)
    for new_rank, (chunk, member) in enumerate(zip(gather(begun), ring[::2], strict=True)):
        assert member.comm.rank == new_rank
        np.testing.assert_array_equal(chunk, wanted[new_rank])
        out = outs[2 * new_rank]  # the chunks of two do not fit where those of three did
        assert (out is not None and np.shares_memory(chunk, out)) == (out_count == COUNT)
    assert_well(ring[::2])


def test_the_error_of_a_codec_is_that_of_the_attempt_that_was_committed(
    ring: Sequence[Member],
) -> None:
    codecs = [ErrorFeedback("uint4") for _ in ring]

    def all_reduce(rank: int) -> Call:
        array = np.random.default_rng(rank).standard_normal(COUNT).astype(np.float32)
        codec = codecs[rank]
        return lambda comm: comm.all_reduce(array, codec=codec, tag="t", measure_error=True)

    begun = begin_and_lose(ring, 1, {rank: all_reduce(rank) for rank in (0, 2)})

    for rank, info in zip((0, 2), gather(begun), strict=True):
        assert info.attempts >= 2
        assert info.world_size == 2
        lost = codecs[rank].state_dict()["t"].astype(np.float64)  # each element encoded once
        assert info.codec_error.largest == np.abs(lost).max()
        assert info.codec_error.rms == pytest.approx(np.sqrt(np.mean(lost**2)), rel=1e-5)
        assert info.compression == pytest.approx(7.75, rel=0.01)
    assert_well(ring[::2])


CALLS: dict[str, Callable[..., object]] = {
    "broadcast": lambda comm, array, **options: comm.broadcast(array, 0, **options),
    "all_gather": lambda comm, array, **options: comm.all_gather(array, **options),
    "reduce_scatter": lambda comm, array, **options: comm.reduce_scatter(array, **options),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@every_call
def test_a_loss_raises_on_all_if_that_was_asked_for(
    ring: Sequence[Member], call: Callable[..., object]
) -> None:
    arrays = [values(rank) for rank in range(3)]
    lost_id = ring[1].comm.peer_id  # a broadcast would come past it

    def act(rank: int) -> Call:
        return lambda comm: call(comm, arrays[rank], on_loss="raise")

    begun = begin_and_lose(ring, 1, {0: act(0), 2: act(2)})

    for rank, future in zip((0, 2), begun, strict=True):
        error = error_of(future)
        assert isinstance(error, CollectiveAborted)
        assert error.peers == (lost_id,)
        np.testing.assert_array_equal(arrays[rank], values(rank))
    assert_well(ring[::2])


# -- nobody is lost ----------------------------------------------------------------------------


@every_call
def test_a_timeout_fails_the_call_for_all_and_changes_no_array(
    ring: Sequence[Member], call: Callable[..., object]
) -> None:
    arrays = [values(rank) for rank in range(3)]
    late_id = ring[2].comm.peer_id

    begun = [
        ring[0].begin(lambda comm: call(comm, arrays[0])),
        ring[1].begin(lambda comm: call(comm, arrays[1], timeout_s=0.5)),
    ]

    for error in map(error_of, begun):
        assert isinstance(error, CallTimeout)
        assert error.peers == (late_id,)
    with pytest.raises(CallTimeout):
        ring[2].do(lambda comm: call(comm, arrays[2]))
    for rank in range(3):
        np.testing.assert_array_equal(arrays[rank], values(rank))
    assert_well(ring)


MISMATCHES: dict[str, tuple[Call, Call, str, str]] = {
    "roots": (
        lambda comm: comm.broadcast(np.ones(9), 0),
        lambda comm: comm.broadcast(np.ones(9), 1),
        "root=",
        "root=",
    ),
    "kinds": (
        lambda comm: comm.all_gather(np.ones(9)),
        lambda comm: comm.reduce_scatter(np.ones(9)),
        "all_gather(9 x float64",
        "reduce_scatter(9 x float64, op='sum'",
    ),
    "halves and the whole": (
        lambda comm: comm.all_reduce(np.ones(9)),
        lambda comm: comm.reduce_scatter(np.ones(9)),
        "all_reduce(",
        "reduce_scatter(",
    ),
    "ops": (
        lambda comm: comm.reduce_scatter(np.ones(9), "min"),
        lambda comm: comm.reduce_scatter(np.ones(9), "max"),
        "op='min'",
        "op='max'",
    ),
    "sizes": (
        lambda comm: comm.all_gather(np.ones(9)),
        lambda comm: comm.all_gather(np.ones(8)),
        "9 x",
        "8 x",
    ),
    "dtypes": (
        lambda comm: comm.broadcast(np.ones(9)),
        lambda comm: comm.broadcast(np.ones(9, np.int64)),
        "float64",
        "int64",
    ),
}


@pytest.mark.parametrize(("one", "other", "says", "also"), MISMATCHES.values(), ids=MISMATCHES)
def test_different_calls_are_a_mismatch_that_names_both(
    ring: Sequence[Member], one: Call, other: Call, says: str, also: str
) -> None:
    begun = [ring[0].begin(one), ring[1].begin(other), ring[2].begin(one)]

    for error in map(error_of, begun):
        assert isinstance(error, MismatchError)
        assert ring[1].comm.peer_id in error.peers
        assert says in str(error)
        assert also in str(error)
    assert_well(ring)
