"""`all_reduce_many`: windows, packed arrays, and what is left after an error."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul import (
    Communicator,
    ReduceInfo,
    connect,
    many,
)
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver, gather, together

Array = NDArray[Any]
Ring = Sequence[Driver[Communicator]]

SMALL = many.PACKED_BYTES_MAX // 4 - 1
LARGE = many.PACKED_BYTES_MAX // 4


def connect_as(world_size: int) -> Callable[[str], Communicator]:
    return lambda address: connect(address, min_world_size=world_size)


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda n: f"world{n}")
def ring(request: pytest.FixtureRequest) -> Iterator[Ring]:
    world_size: int = request.param
    with Cluster(connect_as(world_size)) as cluster:
        yield cluster.drivers(world_size)


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


# -- results -----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["sum", "avg", "max"])
def test_arrays_of_all_sizes_and_dtypes_are_each_reduced(ring: Ring, op: str) -> None:
    dtypes = [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float64)]
    sizes = [0, 1, 5, 1000, 3, SMALL, LARGE, 7, 0, 2 * LARGE + 1, 300_000, 300_000, 300_000, 2]
    n = len(ring)

    def made(index: int) -> list[Array]:
        return [
            np.full(size, index + 1 + place).astype(dtypes[place % 3])
            for place, size in enumerate(sizes)
        ]

    lists = [made(index) for index in range(n)]
    infos = reduce_lists(ring, lists, op=op)

    total = {"sum": n * (n + 1) / 2, "avg": (n + 1) / 2, "max": n}[op]
    for arrays in lists:
        for place, array in enumerate(arrays):
            extra = place * (n if op == "sum" else 1)
            assert array.dtype == dtypes[place % 3]
            assert (array.astype(float) == total + extra).all(), place
    assert all(len(each) == len(sizes) for each in infos)
    assert {info.contributors for each in infos for info in each} == {infos[0][0].contributors}
    assert len(infos[0][0].contributors) == n


def test_arrays_of_any_shape_and_parts_of_arrays_are_reduced_in_place(pair: Ring) -> None:
    bases = [np.arange(24.0) for _ in pair]

    reduce_lists(pair, [[base[:6].reshape(2, 3), base[12:], base[6:7]] for base in bases])

    factors = np.array([2.0] * 7 + [1.0] * 5 + [2.0] * 12)
    for base in bases:
        np.testing.assert_array_equal(base, np.arange(24.0) * factors)


def test_small_arrays_travel_together_and_large_ones_alone(pair: Ring) -> None:
    def made() -> list[Array]:
        return [np.ones(10, np.float32) for _ in range(1000)] + [np.ones(LARGE, np.float32)]

    infos, _ = reduce_lists(pair, [made(), made()])

    assert len({id(info) for info in infos}) == 2
    assert infos[0].sent_bytes == 1000 * 10 * 4
    assert infos[1000].sent_bytes == 4 * LARGE


@pytest.mark.usefixtures("small_parcels")
@pytest.mark.parametrize(("count", "max_in_flight"), [(300, 1), (2000, 8), (1000, 256)])
def test_thousands_of_arrays_pass_through_a_window(
    pair: Ring, count: int, max_in_flight: int
) -> None:
    sizes = np.random.default_rng(max_in_flight).integers(0, 200, count)
    lists = [[np.full(size, float(place)) for place, size in enumerate(sizes)] for _ in pair]

    infos, _ = reduce_lists(pair, lists, max_in_flight=max_in_flight)

    assert len({id(info) for info in infos}) > 100
    for arrays in lists:
        assert all((array == 2.0 * place).all() for place, array in enumerate(arrays))


def test_no_more_are_in_flight_than_asked_for(pair: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[int]] = {}
    post = many.Batch._post

    def watch(batch: many.Batch, runtime: Any) -> None:  # noqa: ANN401
        post(batch, runtime)
        seen.setdefault(id(batch), []).append(len(batch._in_flight))

    monkeypatch.setattr(many.Batch, "_post", watch)
    monkeypatch.setattr(many, "PACKED_BYTES_MAX", 0)
    lists = [[np.ones(4) for _ in range(50)] for _ in pair]

    reduce_lists(pair, lists, max_in_flight=5)

    assert [(len(counts), max(counts)) for counts in seen.values()] == [(50, 5), (50, 5)]


def test_an_empty_list_and_a_generator_are_lists_too(pair: Ring) -> None:
    arrays = [np.ones(2), np.ones(2)]

    assert pair[0].do(lambda comm: comm.all_reduce_many([])) == []
    reduce_lists(pair, [(array for array in [each]) for each in arrays])  # type: ignore[misc]

    assert arrays[0].tolist() == arrays[1].tolist() == [2.0, 2.0]


def test_other_works_may_be_in_flight_meanwhile(pair: Ring) -> None:
    def act(comm: Communicator) -> list[float]:
        own, arrays = np.ones(4), [np.ones(4), np.ones(LARGE)]
        work = comm.all_reduce_async(own)
        comm.all_reduce_many(arrays)
        work.wait(PATIENCE_S)
        return [float(array[0]) for array in (own, *arrays)]

    assert together(pair, act) == [[2.0, 2.0, 2.0]] * 2
