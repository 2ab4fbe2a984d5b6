"""`ErrorFeedback` in calls: one call of a tag at a time, whatever becomes of it."""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from ringhaul import ClosedError, Communicator, ErrorFeedback, Work, aio, connect
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver, together

Array = NDArray[Any]
Ring = Sequence[Driver[Communicator]]


@pytest.fixture
def cluster() -> Iterator[Cluster[Communicator]]:
    with Cluster(lambda address: connect(address, min_world_size=2)) as cluster:
        yield cluster


@pytest.fixture
def pair(cluster: Cluster[Communicator]) -> Ring:
    return cluster.drivers(2)


def values(count: int = 1000) -> Array:
    return np.random.default_rng(count).standard_normal(count).astype(np.float32)


def post(array: Array, codec: ErrorFeedback, **options: Any) -> Callable[[Communicator], Work]:  # noqa: ANN401
    return lambda comm: comm.all_reduce_async(array, codec=codec, **{"tag": "t", **options})


def test_a_second_call_of_a_tag_is_refused_until_the_first_is_done(pair: Ring) -> None:
    first, second = pair
    codecs = [ErrorFeedback("uint8") for _ in pair]
    refused = values()
    work = first.do(post(values(), codecs[0]))

    for count in (1000, 500):
        with pytest.raises(ValueError, match=r"a call of tag 't' .* is in flight"):
            first.do(post(refused[:count], codecs[0]))
        with pytest.raises(ValueError, match="in flight"):
            first.do(lambda comm: comm.all_reduce(refused, codec=codecs[0], tag="t"))
    other = first.do(post(refused, codecs[0], tag="u"))  # its memory is free as well

    for tag in ("t", "u"):
        second.do(post(values(), codecs[1], tag=tag)).wait(PATIENCE_S)
    assert [each.wait(PATIENCE_S).attempts for each in (work, other)] == [1, 1]
    own = {driver.comm.rank: codec for driver, codec in zip(pair, codecs, strict=True)}
    together(pair, lambda comm: comm.all_reduce(values(), codec=own[comm.rank], tag="t"))


def test_members_of_one_process_do_not_share_a_tag(pair: Ring) -> None:
    first, second = pair
    codec = ErrorFeedback("uint8")
    work = first.do(post(values(), codec))

    with pytest.raises(ValueError, match="in flight"):
        second.do(post(values(), codec))

    second.do(post(values(), ErrorFeedback("uint8"))).wait(PATIENCE_S)
    work.wait(PATIENCE_S)


def test_residuals_are_not_replaced_while_a_call_is_in_flight(pair: Ring) -> None:
    first, second = pair
    codec = ErrorFeedback("uint8")
    codec.load_state_dict({"v": np.ones(3, np.float32)})
    work = first.do(post(values(), codec))

    with pytest.raises(ValueError, match=r"'t' .* is in flight"):
        codec.load_state_dict({"t": np.zeros(7, np.float32)})
    with pytest.raises(ValueError, match=r"'t' .* is in flight"):
        codec.forget("t")
    codec.forget("v")
    assert codec.state_dict() == {}

    second.do(post(values(), ErrorFeedback("uint8"))).wait(PATIENCE_S)
    work.wait(PATIENCE_S)
    assert list(codec.state_dict()) == ["t"]
    codec.forget("t")
    codec.load_state_dict({"t": np.zeros(7, np.float32)})


def test_a_tag_is_free_after_any_end(pair: Ring) -> None:
    first, second = pair
    codec = ErrorFeedback("uint8")
    array = values()
    in_flight = first.do(lambda comm: comm.all_reduce_async(array))
    for _ in range(2):
        with pytest.raises(ValueError, match="owns this memory"):
            first.do(post(array, codec))
        with pytest.raises(ValueError, match="owns this memory"):
            first.do(lambda comm: comm.all_reduce(array, codec=codec, tag="t"))
    second.do(lambda comm: comm.all_reduce(values()))
    in_flight.wait(PATIENCE_S)
    broken = np.full(1000, np.nan, np.float32)
    for _ in range(2):
        works = [first.do(post(broken, codec)), second.do(post(broken, ErrorFeedback("uint8")))]
        for work in works:
            with pytest.raises(ValueError, match="cannot carry"):
                work.wait(PATIENCE_S)

    last = first.do(post(array, codec))
    first.do(Communicator.close)

    with pytest.raises(ClosedError):
        last.wait(PATIENCE_S)
    for _ in range(2):
        with pytest.raises(ClosedError):
            first.do(lambda comm: comm.all_reduce(array, codec=codec, tag="t"))
    codec.forget("t")


def test_a_tag_is_kept_through_a_retry() -> None:
    with Cluster(connect) as cluster:
        first, second = cluster.drivers(1)[0], cluster.driver()
        while first.do(Communicator.admit).world_size < 2:
            pass
        second.joined.result(PATIENCE_S)
        codec = ErrorFeedback("uint8")
        codec.load_state_dict({"t": np.ones(1000, np.float32)})
        work = first.do(post(values(), codec))
        with pytest.raises(ValueError, match="in flight"):
            first.do(post(values(), codec))

        second.comm.close()

        assert work.wait(PATIENCE_S).world_size == 1
        assert codec.state_dict()["t"].tolist() == [1.0] * 1000  # nothing was encoded


@pytest.mark.parametrize("name", ["uint8", "uint4+zstd"])
def test_residuals_are_freed_with_the_last_reference_of_the_user(pair: Ring, name: str) -> None:
    dropped: list[weakref.ref[ErrorFeedback]] = []

    def act(comm: Communicator) -> None:
        codec = ErrorFeedback(name)
        dropped.append(weakref.ref(codec))
        comm.all_reduce(values(), codec=codec, tag="t")

    for _ in range(2):
        together(pair, act)
    together(pair, Communicator.barrier)  # the I/O thread has let go of the calls
    gc.collect()

    assert [reference() for reference in dropped] == [None] * 4


async def test_a_second_call_is_refused_in_an_event_loop_too(
    cluster: Cluster[Communicator],
) -> None:
    other = cluster.driver()
    with trio.fail_after(PATIENCE_S):
        async with await aio.connect(cluster.address, min_world_size=2) as comm:
            codec = ErrorFeedback("uint8")
            work = comm.all_reduce_async(values(), codec=codec, tag="t")
            with pytest.raises(ValueError, match="in flight"):
                await comm.all_reduce(values(), codec=codec, tag="t")
            with pytest.raises(ValueError, match="in flight"):
                comm.all_reduce_async(values(), codec=codec, tag="t")
            begun = other.begin(post(values(), ErrorFeedback("uint8")))
            assert (await work.wait()).attempts == 1
            await trio.to_thread.run_sync(begun.result, PATIENCE_S)
