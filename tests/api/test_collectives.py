"""`broadcast`, `all_gather`, `reduce_scatter` over loopback TCP, and what they refuse."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul import Communicator, ReduceInfo, ReduceOp, connect
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver, gather, together

Array = NDArray[Any]
Ring = Sequence[Driver[Communicator]]

WORLD_SIZES = (1, 2, 3, 5)
COUNTS: dict[str, Callable[[int], int]] = {
    "0": lambda n: 0,
    "1": lambda n: 1,
    "n-1": lambda n: n - 1,
    "n+1": lambda n: n + 1,
    "300001": lambda n: 300_001,
}
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float16", "bfloat16", "float32", "float64")
DTYPES = {
    name: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    for name in (*INTEGERS, *FLOATS)
}


def founded(world_size: int) -> Iterator[Ring]:
    """The drivers of all ranks, by rank."""
    with Cluster(lambda address: connect(address, min_world_size=world_size)) as cluster:
        yield sorted(cluster.drivers(world_size), key=lambda driver: driver.comm.rank)


@pytest.fixture(scope="module", params=WORLD_SIZES, ids=lambda n: f"world{n}")
def ring(request: pytest.FixtureRequest) -> Iterator[Ring]:
    yield from founded(request.param)


@pytest.fixture(scope="module")
def pair() -> Iterator[Ring]:
    yield from founded(2)


def inputs(world_size: int, count: int, name: str) -> list[Array]:
    """One array a rank, of any bits that are no NaN."""
    dice = np.random.default_rng([world_size, count])
    if name in FLOATS:
        return [dice.normal(size=count).astype(DTYPES[name]) for _ in range(world_size)]
    info = np.iinfo(DTYPES[name])
    return [
        dice.integers(info.min, info.max, size=count, dtype=DTYPES[name], endpoint=True)
        for _ in range(world_size)
    ]


def each(ring: Ring, act: Callable[[Communicator, int], Any]) -> list[Any]:
    """All ranks do the same at once, each with its rank."""

    def bound(rank: int) -> Callable[[Communicator], Any]:
        return lambda comm: act(comm, rank)

    return gather([driver.begin(bound(rank)) for rank, driver in enumerate(ring)])


every_count = pytest.mark.parametrize("count_of", COUNTS.values(), ids=COUNTS.keys())
every_dtype = pytest.mark.parametrize("name", DTYPES)


@every_dtype
@every_count
def test_broadcast_gives_all_the_array_of_the_root(
    ring: Ring, count_of: Callable[[int], int], name: str
) -> None:
    arrays = inputs(len(ring), count_of(len(ring)), name)
    for root in {0, len(ring) - 1}:
        own = [array.copy() for array in arrays]
        outs = [np.zeros_like(array) for array in arrays]

        each(ring, lambda comm, rank: comm.broadcast(own[rank], root, out=outs[rank]))  # noqa: B023
        assert {out.tobytes() for out in outs} == {arrays[root].tobytes()}
        assert [a.tobytes() for a in own] == [a.tobytes() for a in arrays], "an input was written"

        infos = each(ring, lambda comm, rank: comm.broadcast(own[rank], root))  # noqa: B023
        assert {array.tobytes() for array in own} == {arrays[root].tobytes()}
        assert {(info.world_size, info.attempts) for info in infos} == {(len(ring), 1)}
        assert {info.contributors for info in infos} == {tuple(d.comm.peer_id for d in ring)}


@every_dtype
@every_count
def test_all_gather_gives_all_a_row_of_each(
    ring: Ring, count_of: Callable[[int], int], name: str
) -> None:
    arrays = inputs(len(ring), count_of(len(ring)), name)
    before = [array.tobytes() for array in arrays]

    results = each(ring, lambda comm, rank: comm.all_gather(arrays[rank]))

    for result in results:
        assert (result.shape, result.dtype) == ((len(ring), arrays[0].size), DTYPES[name])
        assert result.tobytes() == np.stack(arrays).tobytes()
    assert [array.tobytes() for array in arrays] == before


@every_dtype
@every_count
def test_reduce_scatter_gives_each_its_part_of_the_all_reduce(
    ring: Ring, count_of: Callable[[int], int], name: str
) -> None:
    arrays = inputs(len(ring), count_of(len(ring)), name)
    before = [array.tobytes() for array in arrays]
    names = [op.value for op in ReduceOp if op is not ReduceOp.AVG or name in FLOATS]
    for op in names if arrays[0].size < 1000 else names[:2]:
        whole = arrays[0].copy()

        chunks = each(ring, lambda comm, rank: comm.reduce_scatter(arrays[rank], op))  # noqa: B023

        assert [array.tobytes() for array in arrays] == before
        each(
            ring,
            lambda comm, rank: comm.all_reduce(
                whole if rank == 0 else arrays[rank].copy(),  # noqa: B023
                op,  # noqa: B023
            ),
        )
        wanted = np.array_split(whole, len(ring))
        assert [c.tobytes() for c in chunks] == [w.tobytes() for w in wanted], op
        assert {c.dtype for c in chunks} == {DTYPES[name]}


@every_dtype
@every_count
def test_reduce_scatter_writes_to_the_head_of_out(
    ring: Ring, count_of: Callable[[int], int], name: str
) -> None:
    arrays = inputs(len(ring), count_of(len(ring)), name)
    before = [array.tobytes() for array in arrays]
    wanted = each(ring, lambda comm, rank: comm.reduce_scatter(arrays[rank]))
    needed = -(-arrays[0].size // len(ring))
    for more in (0, 3):
        outs = [np.full(needed + more, 7, DTYPES[name]) for _ in ring]

        chunks = each(
            ring,
            lambda comm, rank: comm.reduce_scatter(arrays[rank], out=outs[rank]),  # noqa: B023
        )

        for chunk, out, want in zip(chunks, outs, wanted, strict=True):
            assert chunk.tobytes() == want.tobytes() == out[: want.size].tobytes()
            assert np.shares_memory(chunk, out) or not want.size
            assert set(out[want.size :].tolist()) <= {7}
    assert [array.tobytes() for array in arrays] == before


@pytest.mark.parametrize("name", INTEGERS)
def test_reduce_scatter_of_integers_equals_numpy(ring: Ring, name: str) -> None:
    arrays = inputs(len(ring), 1001, name)
    want = np.array_split(np.sum(arrays, axis=0, dtype=DTYPES[name]), len(ring))

    chunks = each(ring, lambda comm, rank: comm.reduce_scatter(arrays[rank]))

    assert [c.tolist() for c in chunks] == [w.tolist() for w in want]


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 4), (0, 7), (4, 1)])
def test_arrays_of_any_shape_are_taken_and_shapes_are_kept(
    pair: Ring, shape: tuple[int, ...]
) -> None:
    arrays = [np.full(shape, float(rank + 1)) for rank in range(2)]
    rows = each(pair, lambda comm, rank: comm.all_gather(arrays[rank]))
    chunks = each(pair, lambda comm, rank: comm.reduce_scatter(arrays[rank]))
    each(pair, lambda comm, rank: comm.broadcast(arrays[rank], 1))

    assert {row.shape for row in rows} == {(2, *shape)}
    np.testing.assert_array_equal(rows[1], [np.full(shape, 1.0), np.full(shape, 2.0)])
    wanted = np.array_split(np.full(shape, 3.0).ravel(), 2)
    assert [c.tolist() for c in chunks] == [w.tolist() for w in wanted]
    np.testing.assert_array_equal(arrays[0], np.full(shape, 2.0))


def test_all_gather_fills_the_first_rows_of_out(pair: Ring) -> None:
    outs = [np.zeros((3, 2, 5)) for _ in pair]

    rows = each(
        pair, lambda comm, rank: comm.all_gather(np.full((2, 5), rank + 1.0), out=outs[rank])
    )

    for result, out in zip(rows, outs, strict=True):
        assert np.shares_memory(result, out)
        np.testing.assert_array_equal(result, out[:2])
        np.testing.assert_array_equal(out[:, 0, 0], [1.0, 2.0, 0.0])


def test_all_gather_with_fewer_rows_than_members_by_now_returns_rows_of_its_own(
    pair: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringhaul.collectives._check_rows", lambda *_: None)  # as if one had come
    outs = [np.zeros((1, 5)) for _ in pair]

    rows = each(pair, lambda comm, rank: comm.all_gather(np.full(5, rank + 1.0), out=outs[rank]))

    for result, out in zip(rows, outs, strict=True):
        np.testing.assert_array_equal(result, [[1.0] * 5, [2.0] * 5])
        assert not out.any()


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_all_gather_fills_a_matrix(pair: Ring) -> None:
    outs = [np.zeros((2, 5)).view(np.matrix) for _ in pair]

    each(pair, lambda comm, rank: comm.all_gather(np.full(5, rank + 1.0), out=outs[rank]))

    for out in outs:
        np.testing.assert_array_equal(out, [[1.0] * 5, [2.0] * 5])


def test_the_root_may_give_a_read_only_array(pair: Ring) -> None:
    given = np.arange(1000.0)
    given.flags.writeable = False
    taken = np.zeros(1000)

    each(pair, lambda comm, rank: comm.broadcast(taken if rank else given))

    np.testing.assert_array_equal(taken, given)


def test_root_may_be_any_integer(pair: Ring) -> None:
    arrays = [np.zeros(3), np.ones(3)]

    each(pair, lambda comm, rank: comm.broadcast(arrays[rank], np.int64(1)))

    np.testing.assert_array_equal(arrays[0], np.ones(3))


def test_infos_say_how_much_a_broadcast_moved(pair: Ring) -> None:
    infos: list[ReduceInfo] = each(pair, lambda comm, _: comm.broadcast(np.zeros(1000, np.float32)))

    assert [(i.sent_bytes, i.received_bytes) for i in infos] == [(4000, 0), (0, 4000)]


def test_collectives_of_several_tags_and_kinds_do_not_mix(ring: Ring) -> None:
    world_size = len(ring)

    def loop(comm: Communicator, rank: int) -> None:
        for turn in range(10):
            for tag in (None, "weights"):
                array = np.full(70, float(rank + turn))
                rows = comm.all_gather(array, tag=tag)
                assert rows[:, 0].tolist() == [float(r + turn) for r in range(world_size)]
                chunk = comm.reduce_scatter(array, "max", tag=tag)
                assert set(chunk.tolist()) <= {float(world_size - 1 + turn)}
                comm.broadcast(array, turn % world_size, tag=tag)
                assert set(array.tolist()) == {float(turn % world_size + turn)}

    each(ring, loop)


# -- what is refused before anything is sent ---------------------------------------------------


def frozen() -> Array:
    array = np.ones(4)
    array.flags.writeable = False
    return array


SHARED = np.ones((3, 4))
Call = Callable[[Communicator], object]
REFUSALS: dict[str, tuple[Call, type[Exception], str]] = {
    "root too high": (lambda c: c.broadcast(np.ones(4), 2), ValueError, "from 0 to 1, not 2"),
    "root below zero": (lambda c: c.broadcast(np.ones(4), -1), ValueError, "from 0 to 1, not -1"),
    "root is a name": (lambda c: c.broadcast(np.ones(4), "a"), TypeError, "whole number"),  # type: ignore[arg-type]
    "root is a float": (lambda c: c.broadcast(np.ones(4), 1.0), TypeError, "whole number"),  # type: ignore[arg-type]
    "root is true": (lambda c: c.broadcast(np.ones(4), True), TypeError, "whole number"),
    "read-only": (lambda c: c.broadcast(frozen(), 1), ValueError, "read-only"),
    "read-only out": (
        lambda c: c.broadcast(np.ones(4), out=frozen()), ValueError, "out is read-only"
    ),
    "out of another shape": (
        lambda c: c.broadcast(np.ones(4), out=np.ones((2, 2))), ValueError, "have to be equal"
    ),
    "out that is the array": (
        lambda c: c.broadcast(SHARED, out=SHARED), ValueError, "shares memory"
    ),
    "broadcast of bools": (lambda c: c.broadcast(np.ones(4, bool)), TypeError, "bool"),
    "strided rows": (lambda c: c.all_gather(np.ones(8)[::2]), ValueError, "not C-contiguous"),
    "a list": (lambda c: c.all_gather([1.0]), TypeError, "NumPy array"),
    "too few rows": (lambda c: c.all_gather(np.ones(4), out=np.ones((1, 4))), ValueError, "1 rows"),
    "other rows": (
        lambda c: c.all_gather(np.ones(4), out=np.ones((2, 5))), ValueError, "rows like"
    ),
    "rows of another dtype": (
        lambda c: c.all_gather(np.ones(4), out=np.ones((2, 4), "f4")), ValueError, "float32"
    ),
    "no rows": (lambda c: c.all_gather(np.ones(()), out=np.ones(())), ValueError, "rows like"),
    "rows of itself": (lambda c: c.all_gather(SHARED[0], out=SHARED), ValueError, "shares memory"),
    "avg of integers": (
        lambda c: c.reduce_scatter(np.ones(4, int), "avg"), TypeError, "divide by world_size"
    ),
    "a chunk too short": (
        lambda c: c.reduce_scatter(np.ones(5), out=np.ones(2)), ValueError, "3 elements at least"
    ),
    "a chunk of two dimensions": (
        lambda c: c.reduce_scatter(np.ones(4), out=np.ones((1, 2))), ValueError, "one dimension"
    ),
    "a chunk of another dtype": (
        lambda c: c.reduce_scatter(np.ones(4), out=np.ones(2, "f4")), ValueError, "float32"
    ),
    "a chunk of itself": (
        lambda c: c.reduce_scatter(SHARED, out=SHARED.ravel()), ValueError, "shares memory"
    ),
    "a read-only chunk": (
        lambda c: c.reduce_scatter(np.ones(4), out=frozen()), ValueError, "out is read-only"
    ),
    "unknown op": (lambda c: c.reduce_scatter(np.ones(4), "median"), ValueError, "'sum', 'avg'"),
    "unknown on_loss": (
        lambda c: c.all_gather(np.ones(4), on_loss="x"), ValueError, '"retry" or "raise"'
    ),
    "negative timeout": (
        lambda c: c.reduce_scatter(np.ones(4), timeout_s=-1), ValueError, "above 0"
    ),
    "long tag": (lambda c: c.broadcast(np.ones(4), tag="x" * 201), ValueError, "200 characters"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "text"), REFUSALS.values(), ids=REFUSALS)
def test_bad_argument_is_refused_and_nothing_is_sent(
    pair: Ring, call: Call, kind: type[Exception], text: str
) -> None:
    first, _ = pair

    with pytest.raises(kind) as caught:
        first.do(call)

    assert text in str(caught.value)
    # the other member called nothing: had this one begun anything, the next would not fit
    rows = together(pair, lambda comm: comm.all_gather(np.ones(1), timeout_s=PATIENCE_S))
    assert rows[0].tolist() == [[1.0], [1.0]]
