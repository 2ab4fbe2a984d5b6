"""Interrupts at every place of a caller's thread: the next call is as good as ever.

The interpreter delivers signals where it enters a function and where a call of a C function
returns. A profile function hears of just those places, and what it raises is raised there.
"""

import gc
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import numpy as np
import pytest

from ringhaul import Communicator, SharedState, connect
from ringhaul.core.peer.steps import CloseCalled
from ringhaul.io.peer_runtime import PeerRuntime
from ringhaul.io.reactor import Mailbox
from ringhaul.testing.threads import PATIENCE_S, CoordinatorThread


class Stop(BaseException):
    """As KeyboardInterrupt, and from nowhere else."""


def interrupt_at(place: int, act: Callable[[], object]) -> bool:
    """Call `act`, interrupted at that place; tell whether it has as many."""
    count = itertools.count()
    was_reached = False

    def on_event(frame: FrameType, event: str, argument: object) -> None:
        nonlocal was_reached
        if event != "c_call" and next(count) == place:
            was_reached = True
            raise Stop

    gc.disable()  # what is raised in a finalizer is not raised in the call
    sys.setprofile(on_event)
    try:
        act()
    except Stop:
        return True
    finally:
        sys.setprofile(None)
        gc.enable()
    return was_reached


def try_at(place: int, act: Callable[[], object], answers: list[bool]) -> None:
    answers.append(interrupt_at(place, act))


def in_time(act: Callable[[], object]) -> None:
    """Call `act` in a thread of its own: it may hang."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors[0]


@contextmanager
def coordinator() -> Iterator[str]:
    thread = CoordinatorThread()
    try:
        yield thread.address
    finally:
        thread.stop()


@pytest.fixture
def alone() -> Iterator[Communicator]:
    with coordinator() as address, connect(address) as comm:
        yield comm


ARRAY = np.ones(100, np.float32)
CALLS: dict[str, Callable[[Communicator], object]] = {
    "barrier": lambda comm: comm.barrier(),
    "all_reduce": lambda comm: comm.all_reduce(ARRAY),
    "all_reduce_async": lambda comm: comm.all_reduce_async(ARRAY).wait(),
    "all_reduce_many": lambda comm: comm.all_reduce_many([ARRAY]),
    "all_gather": lambda comm: comm.all_gather(ARRAY),
    "sync_state": lambda comm: comm.sync_state(SharedState({"a": ARRAY})),
    "admit": lambda comm: comm.admit(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_call_interrupted_anywhere_leaves_a_sound_communicator(
    alone: Communicator, call: Callable[[Communicator], object]
) -> None:
    place, is_interrupted = 0, True
    while is_interrupted:
        answers: list[bool] = []
        in_time(partial(try_at, place, partial(call, alone), answers))
        in_time(lambda: alone.all_reduce(ARRAY.copy()))
        (is_interrupted,) = answers
        place += 1
    assert place > 10
    in_time(lambda: alone.all_reduce(ARRAY))  # nobody owns it


def test_an_interrupted_connect_leaves_nobody_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[PeerRuntime] = []
    start = PeerRuntime.start

    def start_and_stop(runtime: PeerRuntime) -> None:
        start(runtime)
        started.append(runtime)
        raise Stop

    monkeypatch.setattr(PeerRuntime, "start", start_and_stop)
    with coordinator() as address:
        with pytest.raises(Stop):
            connect(address)
        started[0]._thread.join(PATIENCE_S)
        assert not started[0]._thread.is_alive()


def test_what_comes_when_all_has_ended_does_nothing(
    alone: Communicator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = alone._runtime
    close = Mailbox.close

    def close_late(mailbox: Mailbox) -> None:
        mailbox.post(lambda: runtime._step(CloseCalled()))
        close(mailbox)

    monkeypatch.setattr(Mailbox, "close", close_late)
    runtime.abandon()
    assert runtime.ended.wait(PATIENCE_S)

    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
