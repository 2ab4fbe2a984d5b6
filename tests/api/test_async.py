"""`all_reduce_async` and `Work`: in flight, in any order, in any thread, to any end."""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul import (
    CallTimeout,
    Communicator,
    MismatchError,
    Work,
    connect,
)
from ringhaul.limits import EAGER_BYTES_MAX
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver, gather, together

Array = NDArray[Any]
Members = Cluster[Communicator]


def connect_as(world_size: int) -> Callable[[str], Communicator]:
    return lambda address: connect(address, min_world_size=world_size)


@pytest.fixture
def cluster() -> Iterator[Members]:
    with Cluster(connect_as(2)) as cluster:
        yield cluster


@pytest.fixture
def pair(cluster: Members) -> Sequence[Driver[Communicator]]:
    return cluster.drivers(2)


def post(array: Array, **options: Any) -> Callable[[Communicator], Work]:  # noqa: ANN401
    return lambda comm: comm.all_reduce_async(array, **options)


def in_thread(act: Callable[[], object]) -> Future[object]:
    future: Future[object] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def facts(comm: Communicator) -> tuple[int, int, int]:
    return comm.generation, comm.world_size, comm.pending_peers


# -- results -----------------------------------------------------------------------------------


def test_work_is_done_only_when_the_other_has_posted_too(
    pair: Sequence[Driver[Communicator]],
) -> None:
    first, second = pair
    arrays = [np.full(10, 1.0), np.full(10, 2.0)]

    work = first.do(post(arrays[0]))
    assert not work.done()
    np.testing.assert_array_equal(arrays[0], np.full(10, 1.0))
    other = second.do(post(arrays[1]))

    info = work.wait(PATIENCE_S)
    assert work.done()
    assert info.contributors == other.wait(PATIENCE_S).contributors
    for array in arrays:
        np.testing.assert_array_equal(array, np.full(10, 3.0))


@pytest.mark.parametrize(("count", "window"), [(2000, 8), (1000, 1000)])
def test_thousands_of_operations_in_a_window_are_all_exact(
    pair: Sequence[Driver[Communicator]], count: int, window: int
) -> None:
    def loop(comm: Communicator) -> bool:
        arrays = [np.full(3, float(index)) for index in range(count)]
        works: list[Work] = []
        for index, array in enumerate(arrays):
            works.append(comm.all_reduce_async(array))
            if index >= window:
                works[index - window].wait(PATIENCE_S)
        for work in works:
            work.wait(PATIENCE_S)
        return all((array == 2.0 * index).all() for index, array in enumerate(arrays))

    calls = [driver.begin(loop) for driver in pair]
    assert [call.result(4 * PATIENCE_S) for call in calls] == [True, True]


def test_out_is_filled_and_many_may_read_the_same_input(
    pair: Sequence[Driver[Communicator]],
) -> None:
    def act(comm: Communicator) -> list[float]:
        own = np.ones(100)
        outs = [np.empty(100) for _ in range(5)]
        works = [comm.all_reduce_async(own, out=out) for out in outs]
        for work in reversed(works):
            work.wait(PATIENCE_S)
        assert (own == 1.0).all()
        return [float(out.sum()) for out in outs]

    assert together(pair, act) == [[200.0] * 5] * 2


def test_blocking_calls_and_works_may_be_mixed(pair: Sequence[Driver[Communicator]]) -> None:
    def act(comm: Communicator) -> list[float]:
        early, late, blocking = (np.full(4, value) for value in (1.0, 2.0, 3.0))
        first = comm.all_reduce_async(early)
        comm.all_reduce(blocking)
        second = comm.all_reduce_async(late)
        comm.barrier()
        second.wait(PATIENCE_S)
        first.wait(PATIENCE_S)
        return [float(array[0]) for array in (early, late, blocking)]

    assert together(pair, act) == [[2.0, 4.0, 6.0]] * 2


@pytest.mark.parametrize("count", [10, 300_000, EAGER_BYTES_MAX // 8 + 1_000_000])
def test_tags_may_be_posted_in_any_order_on_each_peer(count: int) -> None:
    """The last size is larger than what may be under way unasked: 4 MiB per link."""
    tags = ("a", "b", "c", "d")
    orders = list(itertools.permutations(tags))
    with Cluster(connect_as(3)) as cluster:
        ring = cluster.drivers(3)

        def act(index: int) -> Callable[[Communicator], dict[str, Array]]:
            def run(comm: Communicator) -> dict[str, Array]:
                arrays = {
                    tag: np.full(count, index + float(place)) for place, tag in enumerate(tags)
                }
                works = {}
                for tag in orders[(index * 11 + count) % len(orders)]:
                    works[tag] = comm.all_reduce_async(arrays[tag], tag=tag)
                for tag in orders[(index * 5) % len(orders)]:
                    works[tag].wait(PATIENCE_S)
                return arrays

            return run

        calls = [driver.begin(act(index)) for index, driver in enumerate(ring)]
        for arrays in gather(calls):
            for place, tag in enumerate(tags):
                assert (arrays[tag] == 3.0 + 3 * place).all(), tag


def test_early_data_of_tags_that_nobody_has_posted_is_bounded(
    pair: Sequence[Driver[Communicator]],
) -> None:
    """One peer posts 64 MiB under several tags; the other reads on, and keeps 4 MiB at most."""
    first, second = pair
    size = 1_000_000
    ours = [np.ones(size) for _ in range(8)]
    works = [first.do(post(array, tag=f"t{place}")) for place, array in enumerate(ours)]
    second.do(post(np.ones(1), tag="x")).done()
    first.do(post(np.ones(1), tag="x")).wait(PATIENCE_S)  # posted last, and still comes through

    assert not any(work.done() for work in works)
    theirs = [second.do(post(np.ones(size), tag=f"t{place}")) for place in reversed(range(8))]
    for work in [*works, *theirs]:
        work.wait(PATIENCE_S)
    assert all((array == 2.0).all() for array in ours)


# -- waiting -----------------------------------------------------------------------------------


def test_works_may_be_waited_for_in_other_threads_and_again(
    pair: Sequence[Driver[Communicator]],
) -> None:
    first, second = pair
    array = np.ones(5)
    work = first.do(post(array))
    waits = [in_thread(work.wait) for _ in range(3)]
    second.do(post(np.ones(5)))

    infos = [wait.result(PATIENCE_S) for wait in waits]

    assert infos == [infos[0]] * 3
    assert work.wait() == work.wait(1e-9) == infos[0]


def test_timeout_of_a_wait_ends_the_wait_and_not_the_operation(
    pair: Sequence[Driver[Communicator]],
) -> None:
    first, second = pair
    array = np.ones(5)
    work = first.do(post(array, tag="grads"))

    with pytest.raises(CallTimeout, match="it goes on") as caught:
        work.wait(0.01)
    assert (caught.value.tag, caught.value.seconds) == ("grads", 0.01)
    assert not work.done()

    second.do(post(np.ones(5), tag="grads"))
    assert work.wait(float("inf")).attempts == 1
    np.testing.assert_array_equal(array, np.full(5, 2.0))


def test_timeout_of_an_operation_fails_it_on_all_members_each_time_it_is_waited_for(
    pair: Sequence[Driver[Communicator]],
) -> None:
    first, second = pair
    array = np.ones(5)
    work = first.do(post(array, timeout_s=0.05))
    errors = []
    for _ in range(2):
        with pytest.raises(CallTimeout, match="longer than") as caught:
            work.wait(PATIENCE_S)
        errors.append(caught.value)

    assert errors[0] is not errors[1]
    assert errors[0].peers == errors[1].peers == (second.comm.peer_id,)
    with pytest.raises(CallTimeout):
        second.do(post(np.ones(5))).wait(PATIENCE_S)
    np.testing.assert_array_equal(array, np.ones(5))
    assert together(pair, lambda comm: comm.all_reduce(np.ones(1)).world_size) == [2, 2]


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan")])
def test_wait_refuses_a_timeout_that_is_none(
    pair: Sequence[Driver[Communicator]], timeout_s: float
) -> None:
    works = [driver.do(post(np.ones(1))) for driver in pair]

    with pytest.raises(ValueError, match="above 0"):
        works[0].wait(timeout_s)


def test_mismatch_of_one_work_leaves_the_others_as_they_are(
    pair: Sequence[Driver[Communicator]],
) -> None:
    def act(shapes: Sequence[int]) -> Callable[[Communicator], list[float]]:
        def run(comm: Communicator) -> list[float]:
            arrays = [np.ones(shape) for shape in shapes]
            found: list[float] = []
            for array, work in [(a, comm.all_reduce_async(a)) for a in arrays]:
                try:
                    work.wait(PATIENCE_S)
                    found.append(float(array[0]))
                except MismatchError as error:
                    found.append("7 x float64" in str(error) and float(array[0]))
            return found

        return run

    calls = [d.begin(act(shapes)) for d, shapes in zip(pair, [(5, 7, 9), (5, 8, 9)], strict=True)]
    assert gather(calls) == [[2.0, 1.0, 2.0]] * 2


# -- what the communicator shows ---------------------------------------------------------------


def test_properties_change_when_a_wait_returns_and_never_go_back(cluster: Members) -> None:
    pair = cluster.drivers(2)
    third = cluster.driver(lambda address: connect(address, min_world_size=2, name="third"))

    def act(comm: Communicator) -> list[tuple[int, int, int]]:
        early = comm.all_reduce_async(np.ones(1))
        seen = [facts(comm)]
        while not comm.admit().admitted:
            early.wait(PATIENCE_S)
            early = comm.all_reduce_async(np.ones(1))
        seen.append(facts(comm))
        info = early.wait(PATIENCE_S)  # an older verdict
        assert info.world_size == 2
        seen.append(facts(comm))
        return seen

    calls = [driver.begin(act) for driver in pair]
    first, second = gather(calls)
    assert third.comm.world_size == 3
    assert first == second
    before, admitted, after = first
    assert before[1] == 2
    assert admitted[0] > before[0]
    assert admitted[1:] == (3, 0)
    assert after == admitted


def test_a_done_work_changes_nothing_before_it_is_waited_for(cluster: Members) -> None:
    first, second = cluster.drivers(2)
    third = cluster.driver(lambda address: connect(address, name="third"))
    pending = 0
    while not pending:  # until the coordinator has counted it
        works = [driver.do(post(np.ones(1))) for driver in (first, second)]
        while not all(work.done() for work in works):
            pass
        assert {driver.comm.pending_peers for driver in (first, second)} == {0}
        works[0].wait()
        pending = first.comm.pending_peers
        assert second.comm.pending_peers == 0
        if not pending:
            works[1].wait()
    works[1].wait()
    assert second.comm.pending_peers == 1
    joined = together((first, second), Communicator.admit)
    assert [membership.world_size for membership in joined] == [3, 3]
    assert third.comm.world_size == 3


def test_admit_waits_for_the_works_in_flight(cluster: Members) -> None:
    first, second = cluster.drivers(2)
    third = cluster.driver(lambda address: connect(address, min_world_size=2, name="third"))
    array = np.ones(3)
    work = first.do(post(array))
    admitted = first.begin(Communicator.admit)
    assert not work.done()
    second.do(post(np.ones(3)))
    if not second.do(Communicator.admit).admitted:
        admitted.result(PATIENCE_S)
        while not all(m.admitted for m in together((first, second), Communicator.admit)):
            pass
    else:
        assert admitted.result(PATIENCE_S).admitted

    assert work.wait(PATIENCE_S).world_size == 2
    assert third.comm.world_size == first.comm.world_size == 3
    np.testing.assert_array_equal(array, np.full(3, 2.0))
