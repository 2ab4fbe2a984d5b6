"""What operations in flight own, and how they end with their communicator."""

import gc
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul import (
    ClosedError,
    CollectiveAborted,
    Communicator,
    RinghaulError,
    SharedState,
    Work,
    connect,
    memory,
)
from ringhaul.core.coordinator.model import Options
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver, Logged, together

Array = NDArray[Any]
Members = Cluster[Communicator]
#: Python 3.12 and later say that a fork beside threads may hang: here it is meant.
QUIET_FORK = ("-W", "ignore:This process:DeprecationWarning")


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


# -- memory ------------------------------------------------------------------------------------


def test_memory_of_an_operation_in_flight_is_refused_until_it_is_done(
    pair: Sequence[Driver[Communicator]],
) -> None:
    first, second = pair
    base = np.ones(100)
    work = first.do(post(base[10:20]))
    overlapping: list[tuple[Array, dict[str, Array]]] = [
        (base[10:20], {}),
        (base, {}),
        (base[19:30], {}),
        (base[:11], {}),
        (base[12:13], {}),
        (base[15:25], {"out": np.empty(10)}),
        (np.ones(10), {"out": base[5:15]}),
    ]

    for array, options in overlapping:
        with pytest.raises(ValueError, match="in flight owns this memory"):
            first.do(post(array, **options))
        with pytest.raises(ValueError, match="in flight owns this memory"):
            first.do(lambda comm, a=array, o=options: comm.all_reduce(a, **o))  # type: ignore[misc]
    with pytest.raises(ValueError, match="in flight owns this memory"):
        first.do(lambda comm: comm.all_reduce_many([np.ones(3), base[10:11]]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ringhaul.communicator.prepare_sync_state", None)  # nothing is hashed
        with pytest.raises(ValueError, match="in flight owns this memory"):
            first.do(lambda comm: comm.sync_state(SharedState({"w": base})))

    # nothing of all that was sent: the next two calls fit, also next to the borrowed part
    neighbours = [first.do(post(part)) for part in (base[:10], base[20:30], base[:0])]
    for shape in (10, 10, 10, 0):
        second.do(post(np.ones(shape)))
    for each in (work, *neighbours):
        each.wait(PATIENCE_S)
    again = first.do(post(base[10:20]))
    second.do(post(np.ones(10)))
    again.wait(PATIENCE_S)
    assert base.tolist() == [2.0] * 10 + [3.0] * 10 + [2.0] * 10 + [1.0] * 70


def test_output_of_an_operation_in_flight_is_no_input_of_another(
    pair: Sequence[Driver[Communicator]],
) -> None:
    first, second = pair
    own, out = np.ones(8), np.empty(8)
    first.do(post(own, out=out))

    with pytest.raises(ValueError, match="owns this memory"):
        first.do(post(own))
    with pytest.raises(ValueError, match="owns this memory"):
        first.do(post(out, out=np.empty(8)))

    reading = first.do(post(own, out=np.empty(8)))
    for _ in range(2):
        second.do(post(np.ones(8)))
    reading.wait(PATIENCE_S)


def test_too_many_in_flight_are_refused(
    pair: Sequence[Driver[Communicator]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "WORKS_IN_FLIGHT_MAX", 3)
    first, second = pair
    works = [first.do(post(np.ones(size))) for size in (0, 1, 2)]

    with pytest.raises(RinghaulError, match="3 operations are in flight"):
        first.do(post(np.ones(1)))

    second.do(post(np.ones(0))).wait(PATIENCE_S)
    works[0].wait(PATIENCE_S)
    works.append(first.do(post(np.ones(3))))
    for size in (1, 2, 3):
        second.do(post(np.ones(size)))
    for work in works:
        work.wait(PATIENCE_S)


def test_a_dropped_work_keeps_its_array_and_goes_on(pair: Sequence[Driver[Communicator]]) -> None:
    first, second = pair
    array = np.ones(1000)
    alive = weakref.ref(array)

    def drop(comm: Communicator, arrays: list[Array]) -> None:
        comm.all_reduce_async(arrays.pop())

    arrays = [array]
    del array
    first.do(lambda comm: drop(comm, arrays))
    gc.collect()
    assert alive() is not None

    other = np.ones(1000)
    second.do(post(other)).wait(PATIENCE_S)

    np.testing.assert_array_equal(other, np.full(1000, 2.0))
    together(pair, Communicator.barrier)


# -- ends --------------------------------------------------------------------------------------


def test_close_ends_works_in_flight_and_leaves_their_arrays(
    pair: Sequence[Driver[Communicator]],
) -> None:
    first, _ = pair
    arrays = [np.ones(1_000_000) for _ in range(3)]
    works = [first.do(post(array)) for array in arrays]
    waiting = in_thread(works[1].wait)

    first.comm.close()

    for work in works:
        assert work.done()
        with pytest.raises(ClosedError):
            work.wait()
    with pytest.raises(ClosedError):
        waiting.result(PATIENCE_S)
    assert all((array == 1.0).all() for array in arrays)
    with pytest.raises(ClosedError):
        first.do(post(arrays[0])).wait()


def test_a_work_keeps_its_communicator_from_being_collected() -> None:
    with Cluster(connect_as(2)) as cluster:
        (second,) = [cluster.driver()]
        found = [connect(cluster.address, min_world_size=2)]
        second.joined.result(PATIENCE_S)
        array = np.ones(3)
        work = found[0].all_reduce_async(array)
        alive = weakref.ref(found.pop())
        gc.collect()
        assert alive() is not None

        second.do(post(np.ones(3)))
        work.wait(PATIENCE_S)
        np.testing.assert_array_equal(array, np.full(3, 2.0))
        del work
        gc.collect()
        assert alive() is None


def test_a_loss_with_works_in_flight_retries_or_raises_as_each_was_asked() -> None:
    with Cluster(connect, Options(waiting_report_s=0.05)) as cluster:
        first, second = cluster.drivers(1)[0], cluster.driver()
        while first.do(Communicator.admit).world_size < 2:
            pass
        second.joined.result(PATIENCE_S)
        retried, raised = np.ones(3), np.ones(3)
        with Logged("'b'#0 waits for") as begun:
            patient = first.do(post(retried, tag="a"))
            strict = first.do(post(raised, tag="b", on_loss="raise"))
            begun.wait()

        second.comm.close()

        with pytest.raises(CollectiveAborted, match="was lost"):
            strict.wait(PATIENCE_S)
        info = patient.wait(PATIENCE_S)
        assert (info.contributors, info.attempts) == ((first.comm.peer_id,), 2)
        assert first.comm.world_size == 1
        assert retried.tolist() == raised.tolist() == [1.0] * 3


def test_wait_in_a_forked_child_says_whose_operation_it_is(cluster: Members) -> None:
    script = """
        comm = ringhaul.connect(sys.argv[1], min_world_size=2)
        work = comm.all_reduce_async(numpy.ones(3))
        child = os.fork()
        if child == 0:
            try:
                work.wait()
            except ringhaul.ClosedError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(work.wait().world_size, flush=True)
        """
    other = cluster.driver()
    child = start(cluster, script)
    assert child.stdout is not None
    first = child.stdout.readline()  # before the operation can end
    other.comm.all_reduce(np.ones(3))

    out, errors = child.communicate(timeout=PATIENCE_S)

    assert (child.returncode, errors) == (0, "")
    assert (first + out).splitlines() == [
        "this is a forked process: the operation is its parent's",
        "2",
    ]


def test_exit_with_works_in_flight_ends_their_waits_quietly(cluster: Members) -> None:
    script = """
        def wait(work):
            try:
                work.wait()
            except ringhaul.ClosedError:
                pass
        comm = ringhaul.connect(sys.argv[1], min_world_size=2)
        works = [comm.all_reduce_async(numpy.ones(3)) for _ in range(3)]
        for work in works:
            threading.Thread(target=wait, args=(work,), daemon=True).start()
        print("posted", flush=True)
        """
    cluster.driver()
    child = start(cluster, script)

    assert child.communicate(timeout=PATIENCE_S) == ("posted\n", "")
    assert child.returncode == 0


def start(cluster: Members, script: str) -> subprocess.Popen[str]:
    prelude = "import os, sys, threading\nimport numpy, ringhaul\n"
    return subprocess.Popen(
        [sys.executable, *QUIET_FORK, "-c", prelude + textwrap.dedent(script), cluster.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
