"""How communicators end: closed, interrupted, collected, killed, forked, at exit."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ringhaul import (
    ClosedError,
    CollectiveAborted,
    Communicator,
    CoordinatorLost,
    RinghaulError,
    connect,
)
from ringhaul.core.coordinator.model import Options
from ringhaul.core.peer import model
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver, Logged, together

Members = Cluster[Communicator]
#: Python 3.12 and later say that a fork beside threads may hang: here it is meant.
QUIET_FORK = ("-W", "ignore:This process:DeprecationWarning")


@pytest.fixture
def cluster() -> Iterator[Members]:
    with Cluster(connect, Options(waiting_report_s=0.05)) as cluster:
        yield cluster


def total(comm: Communicator) -> float:
    array = np.ones(1)
    comm.all_reduce(array, timeout_s=PATIENCE_S)
    return float(array[0])


def io_threads() -> int:
    return sum(thread.name == "ringhaul" for thread in threading.enumerate())


def join(member: Driver[Communicator]) -> None:
    """Admit until somebody has joined."""
    deadline = time.monotonic() + PATIENCE_S
    while not member.do(Communicator.admit).admitted:
        assert time.monotonic() < deadline, "nobody comes"


class Script:
    """A program in a process of its own; it gets the coordinator's address as argument."""

    def __init__(self, cluster: Members, text: str) -> None:
        prelude = "import atexit, os, signal, sys, threading, time\nimport numpy, ringhaul\n"
        self.child = subprocess.Popen(
            [sys.executable, *QUIET_FORK, "-c", prelude + textwrap.dedent(text), cluster.address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_line(self) -> str:
        assert self.child.stdout is not None
        return self.child.stdout.readline().strip()

    def end(self) -> tuple[int, str, str]:
        """Exit code, the rest of what was printed, and errors."""
        try:
            out, errors = self.child.communicate(timeout=PATIENCE_S)
        finally:
            self.child.kill()
        return self.child.returncode, out, errors


# -- close -------------------------------------------------------------------------------------


def test_calls_after_close_say_that_it_is_closed(cluster: Members) -> None:
    comm = connect(cluster.address)
    comm.close()
    comm.close()

    for call in (comm.admit, comm.barrier, lambda: total(comm)):
        with pytest.raises(ClosedError, match="closed"):
            call()
    assert comm.world_size == 1  # what it was


def test_with_block_leaves_at_its_end(cluster: Members) -> None:
    before = io_threads()

    with connect(cluster.address) as comm:
        assert total(comm) == 1.0

    assert io_threads() == before
    with pytest.raises(ClosedError):
        comm.barrier()


def test_close_from_another_thread_ends_the_open_call(cluster: Members) -> None:
    (first,) = cluster.drivers(1)
    second = cluster.driver()
    join(first)
    with Logged("waits for") as reported:
        waiting = second.begin(total)
        reported.wait()

    second.comm.close()

    with pytest.raises(ClosedError, match="during the call"):
        waiting.result(PATIENCE_S)
    assert first.do(total) == 1.0


def test_second_thread_in_a_call_is_told_one_at_a_time(cluster: Members) -> None:
    (first,) = cluster.drivers(1)
    second = cluster.driver()
    join(first)
    with Logged("waits for") as reported:
        waiting = first.begin(total)
        reported.wait()

    with pytest.raises(RinghaulError, match="one at a time"):
        first.comm.barrier()

    assert second.do(total) == waiting.result(PATIENCE_S) == 2.0


def test_collected_communicator_leaves_and_its_thread_ends(cluster: Members) -> None:
    (first,) = cluster.drivers(1)
    before = io_threads()
    found: list[Communicator] = []
    thread = threading.Thread(target=lambda: found.append(connect(cluster.address)))
    thread.start()
    join(first)
    thread.join(PATIENCE_S)
    assert io_threads() == before + 1

    with Logged("it left") as left:
        found.clear()
        gc.collect()
        left.wait()

    assert io_threads() == before
    assert first.do(total) == 1.0


# -- interrupts --------------------------------------------------------------------------------


def interrupt_after(logged: Logged) -> threading.Thread:
    """Send SIGINT to the main thread, which runs the test, once that was logged."""

    def act() -> None:
        logged.wait()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_interrupt_ends_the_call_for_all_and_all_can_call_again(cluster: Members) -> None:
    (other,) = cluster.drivers(1)
    found: list[Communicator] = []
    thread = threading.Thread(target=lambda: found.append(connect(cluster.address)))
    thread.start()
    join(other)
    thread.join(PATIENCE_S)
    with found[0] as comm:
        array = np.ones(100_000)

        with Logged("waits for") as reported:
            killer = interrupt_after(reported)
            with pytest.raises(KeyboardInterrupt):
                comm.all_reduce(array)
        killer.join(PATIENCE_S)

        np.testing.assert_array_equal(array, np.ones(100_000))
        with pytest.raises(CollectiveAborted, match="KeyboardInterrupt") as caught:
            other.do(lambda comm: comm.all_reduce(np.ones(100_000)))
        assert caught.value.peers == (comm.peer_id,)
        again = other.begin(total)
        assert total(comm) == again.result(PATIENCE_S) == 2.0


def test_interrupt_of_admit_ends_it_for_all(cluster: Members) -> None:
    (other,) = cluster.drivers(1)
    found: list[Communicator] = []
    thread = threading.Thread(target=lambda: found.append(connect(cluster.address)))
    thread.start()
    join(other)
    thread.join(PATIENCE_S)
    with found[0] as comm:
        reduced = other.begin(total)  # else the newcomer's first vote ends for itself alone
        assert total(comm) == reduced.result(PATIENCE_S) == 2.0
        with Logged("admit waits for") as reported:
            killer = interrupt_after(reported)
            with pytest.raises(KeyboardInterrupt):
                comm.admit()
        killer.join(PATIENCE_S)

        with pytest.raises(CollectiveAborted, match="interrupted"):
            other.do(Communicator.admit)
        again = other.begin(Communicator.admit)
        assert not comm.admit().admitted
        assert not again.result(PATIENCE_S).admitted


def test_interrupted_connect_leaves_no_thread(cluster: Members) -> None:
    (_,) = cluster.drivers(1)
    before = io_threads()

    with Logged("is pending") as pending:
        killer = interrupt_after(pending)
        with pytest.raises(KeyboardInterrupt):
            connect(cluster.address)

    killer.join(PATIENCE_S)
    assert io_threads() == before


# -- processes that end ------------------------------------------------------------------------


def test_process_that_exits_without_close_leaves_and_ends_quickly(cluster: Members) -> None:
    with Logged("it left") as left:
        script = Script(
            cluster,
            """
            comm = ringhaul.connect(sys.argv[1])
            comm.all_reduce(numpy.ones(10))
            print("done", flush=True)
            """,
        )
        assert script.wait_line() == "done"
        began_at = time.monotonic()
        assert script.end() == (0, "", "")
        left.wait()

    assert time.monotonic() - began_at < 5.0


def test_call_after_the_communicator_closed_at_exit_says_so(cluster: Members) -> None:
    script = Script(
        cluster,
        """
        def late():
            try:
                comm.all_reduce(numpy.ones(10))
            except ringhaul.ClosedError as error:
                print(error)
        atexit.register(late)  # runs after what `connect` registers
        comm = ringhaul.connect(sys.argv[1])
        """,
    )

    code, out, errors = script.end()

    assert (code, errors) == (0, "")
    assert "closed" in out


def test_exit_in_the_middle_of_a_call_of_a_daemon_thread_is_quiet(cluster: Members) -> None:
    (first,) = cluster.drivers(1)
    script = Script(
        cluster,
        """
        comm = ringhaul.connect(sys.argv[1])
        def reduce():
            try:
                comm.all_reduce(numpy.ones(10))
            except ringhaul.ClosedError:
                pass
        threading.Thread(target=reduce, daemon=True).start()
        """,
    )
    join(first)

    assert script.end() == (0, "", "")
    assert first.do(total) == 1.0


def test_uncaught_error_still_leaves_in_an_orderly_way(cluster: Members) -> None:
    with Logged("it left") as left:
        script = Script(
            cluster,
            """
            comm = ringhaul.connect(sys.argv[1])
            raise SystemExit(3)
            """,
        )
        assert script.end() == (3, "", "")
        left.wait()


def test_forked_child_does_not_keep_a_killed_parent_s_connections(cluster: Members) -> None:
    (first,) = cluster.drivers(1)
    script = Script(
        cluster,
        """
        comm = ringhaul.connect(sys.argv[1])
        comm.barrier()
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        comm.barrier()
        time.sleep(60)
        """,
    )
    join(first)
    first.do(Communicator.barrier)
    grandchild = int(script.wait_line())
    try:
        first.do(Communicator.barrier)
        began_at = time.monotonic()
        script.child.kill()

        assert first.do(total) == 1.0
        assert time.monotonic() - began_at < 4.0
    finally:
        os.kill(grandchild, signal.SIGKILL)
        script.end()


def test_communicator_of_the_parent_is_closed_in_a_forked_child(cluster: Members) -> None:
    script = Script(
        cluster,
        """
        comm = ringhaul.connect(sys.argv[1])
        child = os.fork()
        if child == 0:
            try:
                comm.barrier()
            except ringhaul.ClosedError as error:
                print(error, flush=True)
            comm.close()
            sys.exit(0)
        os.waitpid(child, 0)
        comm.all_reduce(numpy.ones(10))  # the child's end was not ours
        print("alive", flush=True)
        """,
    )

    code, out, errors = script.end()

    assert (code, errors) == (0, "")
    assert "connect again in it" in out
    assert "alive" in out


# -- the coordinator is gone -------------------------------------------------------------------


def test_coordinator_that_stays_away_is_lost_after_the_grace(
    cluster: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = model.PeerOptions

    def short(**facts: Any) -> model.PeerOptions:  # noqa: ANN401
        return options(**facts, coordinator_grace_s=0.4)

    monkeypatch.setattr("ringhaul.joining.PeerOptions", short)
    (first,) = cluster.drivers(1)
    second = cluster.driver()
    join(first)
    together((first, second), total)
    cluster.coordinator.stop()

    for member in (first, second):
        with pytest.raises(CoordinatorLost, match="connect again"):
            member.do(Communicator.barrier)
        with pytest.raises(CoordinatorLost, match="communicator is closed"):
            member.do(total)
