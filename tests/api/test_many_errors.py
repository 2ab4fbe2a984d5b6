"""`all_reduce_many`: what is refused, and what is left after an error."""

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul import (
    CallTimeout,
    ClosedError,
    CollectiveAborted,
    Communicator,
    MismatchError,
    ReduceInfo,
    RinghaulError,
    connect,
    many,
)
from ringhaul.core.coordinator.model import Options
from ringhaul.quant.blocks import UINT8
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver, Logged, gather, together

Array = NDArray[Any]
Ring = Sequence[Driver[Communicator]]

LARGE = many.PACKED_BYTES_MAX // 4


def connect_as(world_size: int) -> Callable[[str], Communicator]:
    return lambda address: connect(address, min_world_size=world_size)


@pytest.fixture(scope="module")
def pair() -> Iterator[Ring]:
    with Cluster(connect_as(2)) as cluster:
        yield cluster.drivers(2)


@pytest.fixture
def small_parcels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many operations from kilobytes as usually from megabytes."""
    monkeypatch.setattr(many, "PACKED_BYTES_MAX", 512)
    monkeypatch.setattr(many, "PARCEL_BYTES_MAX", 1024)


def reduce_lists(
    ring: Ring,
    lists: Sequence[Sequence[Array]],
    **options: Any,  # noqa: ANN401
) -> list[list[ReduceInfo]]:
    def call(arrays: Sequence[Array]) -> Callable[[Communicator], list[ReduceInfo]]:
        return lambda comm: comm.all_reduce_many(arrays, timeout_s=PATIENCE_S, **options)

    return gather([d.begin(call(arrays)) for d, arrays in zip(ring, lists, strict=True)])


def still_in_step(ring: Ring) -> bool:
    """Do the next calls of all members fit together, and let them admit?"""

    def act(comm: Communicator) -> float:
        array = np.ones(3)
        comm.all_reduce(array, timeout_s=PATIENCE_S)
        comm.admit(timeout_s=PATIENCE_S)
        return float(array[0])

    return set(together(ring, act)) == {float(len(ring))}


def join(drivers: Ring) -> None:
    """Admit, each as soon as it is a member, until all of them are."""

    def act(comm: Communicator) -> None:
        while comm.world_size < len(drivers):
            comm.admit(timeout_s=PATIENCE_S)

    together(drivers, act)


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([100, 200], [200, 100]),
        ([100, 200], [300]),
        ([100, 0, 200], [100, 200]),
        ([LARGE, 3], [LARGE, 4]),
        ([3, LARGE], [3, LARGE, 3]),
    ],
)
def test_another_partition_is_a_mismatch_on_all_and_changes_nothing(
    pair: Ring, ours: list[int], theirs: list[int]
) -> None:
    lists = [[np.ones(size, np.float32) for size in sizes] for sizes in (ours, theirs)]

    def act(arrays: list[Array]) -> Callable[[Communicator], RinghaulError]:
        def run(comm: Communicator) -> RinghaulError:
            with pytest.raises(MismatchError, match="all_reduce_many") as caught:
                comm.all_reduce_many(arrays, timeout_s=PATIENCE_S)
            return caught.value

        return run

    calls = [d.begin(act(arrays)) for d, arrays in zip(pair, lists, strict=True)]
    for error, arrays in zip(gather(calls), lists, strict=True):
        assert list(error.infos) == [None] * len(arrays)
        assert all((array == 1.0).all() for array in arrays)
    assert still_in_step(pair)


def test_a_single_call_on_one_member_is_a_mismatch(pair: Ring) -> None:
    def check(act: Callable[[Communicator], object]) -> Callable[[Communicator], None]:
        def run(comm: Communicator) -> None:
            with pytest.raises(MismatchError, match="all_reduce_many"):
                act(comm)

        return run

    arrays = [np.ones(LARGE, np.float32) for _ in range(10)]
    calls = [
        pair[0].begin(check(lambda comm: comm.all_reduce_many(arrays))),
        pair[1].begin(check(lambda comm: comm.all_reduce(np.ones(LARGE, np.float32)))),
    ]
    gather(calls)

    assert still_in_step(pair)


def test_one_array_of_another_dtype_is_a_mismatch(pair: Ring) -> None:
    def act(dtype: str) -> Callable[[Communicator], bool]:
        def run(comm: Communicator) -> bool:
            arrays = [np.ones(4, np.float32), np.ones(4, dtype), np.ones(4, np.float32)]
            with pytest.raises(MismatchError):
                comm.all_reduce_many(arrays, timeout_s=PATIENCE_S)
            return all((array == 1).all() for array in arrays)

        return run

    assert gather([pair[0].begin(act("f4")), pair[1].begin(act("i4"))]) == [True, True]
    assert still_in_step(pair)


@pytest.mark.usefixtures("small_parcels")
def test_a_failure_leaves_members_in_step_however_far_each_had_come() -> None:
    """One posts its whole window and times out; the other comes later, with another window."""
    with Cluster(connect_as(2)) as cluster:
        pair = cluster.drivers(2)
        arrays = [[np.full(100, float(place)) for place in range(40)] for _ in pair]
        windows = (16, 2)

        def act(index: int) -> Callable[[Communicator], list[ReduceInfo | None]]:
            def run(comm: Communicator) -> list[ReduceInfo | None]:
                with pytest.raises(CallTimeout) as caught:
                    comm.all_reduce_many(arrays[index], max_in_flight=windows[index], timeout_s=0.2)
                return list(caught.value.infos)

            return run

        first, second = (pair[index].do(act(index)) for index in range(2))

        assert first == second == [None] * 40
        for each in arrays:
            assert all((array == place).all() for place, array in enumerate(each))
        assert still_in_step(pair)
        assert still_in_step(pair)


@pytest.mark.usefixtures("small_parcels")
@pytest.mark.parametrize("on_loss", ["retry", "raise"])
@pytest.mark.parametrize("leave_after", [0, 1, 17])
def test_a_loss_in_the_middle_of_a_window(on_loss: str, leave_after: int) -> None:
    """The victim posts a few operations by hand, as `all_reduce_many` would, then leaves."""
    with Cluster(connect, Options(waiting_report_s=0.05)) as cluster:
        a, b, victim = drivers = (*cluster.drivers(1), cluster.driver(), cluster.driver())
        join(drivers)
        survivors = (a, b)
        names = {d.comm.peer_id: 10.0**i for i, d in enumerate((a, b, victim))}
        lists = [[np.full(100, 10.0**i) for _ in range(40)] for i in range(3)]

        def act(arrays: list[Array]) -> Callable[[Communicator], Sequence[ReduceInfo | None]]:
            def run(comm: Communicator) -> Sequence[ReduceInfo | None]:
                try:
                    return comm.all_reduce_many(arrays, on_loss=on_loss, max_in_flight=4)
                except CollectiveAborted as error:
                    return list(error.infos)

            return run

        def part(comm: Communicator) -> None:
            batch = many.Batch(
                lists[2],
                "sum",
                codec="raw",
                max_in_flight=1,
                on_loss=on_loss,
                timeout_s=None,
                measure_error=False,
                buffers=many.ParcelBuffers(),
            )
            for count, happened in enumerate(batch.run(comm._runtime)):
                if count == leave_after:
                    break
                happened.wait(PATIENCE_S)
            waiting.wait()
            comm.close()

        with Logged("waits for") as waiting:
            running = [d.begin(act(arrays)) for d, arrays in zip(survivors, lists[:2], strict=True)]
            victim.do(part)
            infos, others = gather(running)

        assert [i and i.contributors for i in infos] == [i and i.contributors for i in others]
        for arrays in lists[:2]:
            for array, info in zip(arrays, infos, strict=True):
                own = float(10.0 ** (arrays is lists[1]))
                want = sum(names[peer] for peer in info.contributors) if info else own
                assert (array == want).all()
        counts = [len(info.contributors) if info else 0 for info in infos]
        if on_loss == "retry":
            assert counts == sorted(counts, reverse=True)
            assert counts[-1] == 2
        else:  # what the coordinator had not heard of when it was lost runs with two
            assert set(counts) <= {3, 2, 0}
        assert still_in_step(survivors)


def test_timeout_is_for_the_whole_call(pair: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation gets what is left of it."""
    given: list[float] = []
    prepare = many.Batch._prepare

    def watch(batch: many.Batch, parcel: many.Parcel) -> Any:  # noqa: ANN401
        call = prepare(batch, parcel)
        given.append(call.timeout_s or 0.0)
        return call

    monkeypatch.setattr(many.Batch, "_prepare", watch)
    monkeypatch.setattr(many, "PACKED_BYTES_MAX", 0)

    reduce_lists(pair, [[np.ones(1) for _ in range(20)] for _ in pair])

    assert len(given) == 40
    assert 0 < min(given) < max(given) <= PATIENCE_S


def test_close_in_the_middle_raises_and_owns_nothing_any_more() -> None:
    with Cluster(connect_as(2), Options(waiting_report_s=0.05)) as cluster:
        first, _ = cluster.drivers(2)
        arrays = [np.ones(LARGE, np.float32) for _ in range(20)]
        with Logged("waits for") as waiting:
            call = first.begin(lambda comm: comm.all_reduce_many(arrays))
            waiting.wait()

        first.comm.close()

        with pytest.raises(ClosedError) as caught:
            call.result(PATIENCE_S)
        assert list(caught.value.infos) == [None] * 20
        assert all((array == 1.0).all() for array in arrays)


@pytest.mark.usefixtures("small_parcels")
def test_interrupt_ends_it_on_all_members_and_keeps_them_in_step() -> None:
    with Cluster(connect, Options(waiting_report_s=0.05)) as cluster:
        (other,) = cluster.drivers(1)
        found: list[Communicator] = []
        thread = threading.Thread(target=lambda: found.append(connect(cluster.address)))
        thread.start()
        while not other.do(Communicator.admit).admitted:
            pass
        thread.join(PATIENCE_S)
        arrays = [np.ones(100) for _ in range(50)]
        with found[0] as comm:
            with Logged("waits for") as waiting:

                def interrupt() -> None:
                    waiting.wait()
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

                killer = threading.Thread(target=interrupt)
                killer.start()
                with pytest.raises(KeyboardInterrupt) as interrupted:
                    comm.all_reduce_many(arrays)
            killer.join(PATIENCE_S)

            assert interrupted.value.__notes__ == ["all_reduce_many: 0 of 50 arrays are reduced"]
            assert all((array == 1.0).all() for array in arrays)
            with pytest.raises(CollectiveAborted, match="KeyboardInterrupt") as caught:
                other.do(lambda comm: comm.all_reduce_many([np.ones(100) for _ in range(50)]))
            assert list(caught.value.infos) == [None] * 50
            again = other.begin(lambda comm: comm.all_reduce_many([np.ones(5)]))
            comm.all_reduce_many([np.ones(5)])
            assert again.result(PATIENCE_S)[0].world_size == 2


# -- what is refused before anything is sent ---------------------------------------------------

BASE = np.ones(100)
LONG = dataclasses.replace(UINT8, name="x" * 65)
REFUSALS: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "the same array twice": (
        [BASE, np.ones(3), BASE],
        {},
        ValueError,
        r"arrays\[0\] and arrays\[2\]",
    ),
    "overlapping parts": ([BASE[50:], BASE[:51]], {}, ValueError, r"arrays\[0\] and arrays\[1\]"),
    "a part and the whole": (
        [np.ones(1), BASE, BASE[3:4]],
        {},
        ValueError,
        r"\[1\] and arrays\[2\]",
    ),
    "one strided": ([np.ones(3), np.ones(8)[::2]], {}, ValueError, r"arrays\[1\] is not C-contig"),
    "one read-only": ([np.broadcast_to(np.ones(1), (1,))], {}, ValueError, r"arrays\[0\] is read"),
    "one of strings": ([np.ones(1), np.array(["a"])], {}, TypeError, "cannot be reduced"),
    "one of another byte order": ([np.ones(1), np.ones(1, ">f8")], {}, TypeError, "byte order"),
    "one array": (np.ones((3, 4)), {}, TypeError, "a list of arrays, not one ndarray"),
    "a dict": ({"a": np.ones(3)}, {}, TypeError, "a list of arrays, not one dict"),
    "a number": (3, {}, TypeError, "a list of arrays, not a int"),
    "a list of lists": ([[1.0, 2.0]], {}, TypeError, r"arrays\[0\] has to be a NumPy array"),
    "avg of an integer": ([np.ones(1), np.ones(1, int)], {"op": "avg"}, TypeError, "divide by"),
    "no window": ([BASE], {"max_in_flight": 0}, ValueError, "max_in_flight is from 1 to 256"),
    "too large a window": ([BASE], {"max_in_flight": 257}, ValueError, "from 1 to 256"),
    "half a window": ([BASE], {"max_in_flight": 0.5}, TypeError, "max_in_flight is a whole number"),
    "unknown codec": ([BASE], {"codec": "uint3"}, ValueError, "codec 'uint3'"),
    "a codec of a long name": ([BASE], {"codec": LONG}, ValueError, "of 1 to 64 characters"),
    "unknown op": ([BASE], {"op": "median"}, ValueError, "op is one of"),
    "unknown on_loss": ([BASE], {"on_loss": "ignore"}, ValueError, '"retry" or "raise"'),
    "timeout of zero": ([BASE], {"timeout_s": 0}, ValueError, "above 0"),
}


@pytest.mark.parametrize(("arrays", "options", "kind", "text"), REFUSALS.values(), ids=REFUSALS)
def test_bad_argument_is_refused_and_nothing_is_sent(
    pair: Ring,
    arrays: list[Array],
    options: dict[str, Any],
    kind: type[Exception],
    text: str,
) -> None:
    with pytest.raises(kind, match=text):
        pair[0].do(lambda comm: comm.all_reduce_many(arrays, **options))

    assert still_in_step(pair)
