"""What moves in a `sync_state`, and from whom: blocks that differ, from all who have them."""

from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import pytest
import trio

from ringhaul import (
    Communicator,
    MismatchError,
    RinghaulError,
    SharedState,
    StateError,
    SyncInfo,
    connect,
)
from ringhaul.io import state_fetch
from ringhaul.io.state_serve import _Connection
from ringhaul.limits import STATE_BLOCK_BYTES
from ringhaul.state.content import Stage
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver
from ringhaul.wire.state_records import Kind, StateRecord

BLOCKS = 24
Member = Driver[Communicator]


@pytest.fixture
def cluster() -> Iterator[Cluster[Communicator]]:
    with Cluster(lambda address: connect(address, min_world_size=3)) as cluster:
        yield cluster


def large(value: int, revision: int = 0) -> SharedState:
    numbers = np.arange(BLOCKS * STATE_BLOCK_BYTES // 4, dtype=np.float32)
    arrays = {"weights": numbers + np.float32(value), "step": np.array([value])}
    return SharedState(arrays, revision=revision)


def sync(
    drivers: tuple[Member, ...], states: list[SharedState], **options: object
) -> list[SyncInfo | BaseException]:
    """All call it; results or errors in their order."""
    futures = [
        driver.begin(lambda comm, mine=mine: comm.sync_state(mine, **options))  # type: ignore[misc]
        for driver, mine in zip(drivers, states, strict=True)
    ]
    errors = [future.exception(PATIENCE_S) for future in futures]
    return [
        future.result() if error is None else error
        for future, error in zip(futures, errors, strict=True)
    ]


def well(results: list[SyncInfo | BaseException]) -> list[SyncInfo]:
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if isinstance(result, SyncInfo)]


def test_only_the_blocks_that_differ_travel(cluster: Cluster[Communicator]) -> None:
    states = [large(0), large(0), large(0)]
    changed = states[2].arrays["weights"]
    changed[5] = changed[3 * STATE_BLOCK_BYTES] = -1

    infos = well(sync(cluster.drivers(3), states))

    assert infos[2].received_blocks == 2
    assert infos[2].received_bytes == 2 * STATE_BLOCK_BYTES
    assert sum(infos[2].bytes_by_source.values()) == infos[2].received_bytes
    assert sum(info.sent_bytes for info in infos) == infos[2].received_bytes
    assert states[2].digest() == states[0].digest()


def hold_back(monkeypatch: pytest.MonkeyPatch, is_ready: Callable[[set[int]], bool]) -> None:
    """No block leaves before it is time; told are the states that were asked for blocks."""
    send = _Connection._send_run
    asked: set[int] = set()
    opened: list[bool] = []

    async def send_in_time(connection: _Connection, indices: range) -> None:
        asked.add(id(connection._served))
        while not opened:
            if is_ready(asked):
                opened.append(True)
            await trio.sleep(0.001)
        await send(connection, indices)

    monkeypatch.setattr(_Connection, "_send_run", send_in_time)


def is_asked(driver: Member) -> bool:
    """Is a requester connected to this peer now?"""
    served = list(driver.comm._runtime._calls.states._served.values())
    return any(each.connections for each in served)


def test_all_holders_give_a_part(
    cluster: Cluster[Communicator], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [large(0), large(0), large(7)]
    drivers = cluster.drivers(3)
    hold_back(monkeypatch, lambda asked: len(asked) == 2)

    infos = well(sync(drivers, states, upload_bytes_per_s=40e6))

    assert set(infos[2].sources) == {drivers[0].comm.peer_id, drivers[1].comm.peer_id}
    assert infos[2].received_blocks == BLOCKS + 1
    assert states[2].digest() == states[0].digest()


def test_requesters_give_each_other_what_they_have(
    cluster: Cluster[Communicator], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [large(0, revision=1), large(5), large(7)]
    drivers = cluster.drivers(3)
    holder = drivers[0].comm.peer_id
    hold_back(monkeypatch, lambda _: all(map(is_asked, drivers)))

    infos = well(sync(drivers, states, upload_bytes_per_s=40e6))

    assert len({state.digest() for state in states}) == 1
    for info in infos[1:]:
        assert holder in info.sources
    assert any(len(info.sources) == 2 for info in infos[1:])
    assert infos[0].sent_bytes < 2 * states[0].total_bytes


def test_every_dtype_is_made_equal(cluster: Cluster[Communicator]) -> None:
    dtypes = ["?", "i1", "u2", "i8", "f2", "f4", "f8", "c16", ml_dtypes.bfloat16, "M8[ns]"]

    def example(fill: int) -> SharedState:
        raw = bytes([fill]) * 48
        return SharedState(
            {f"{np.dtype(d).name}": np.frombuffer(raw, np.dtype(d)).copy() for d in dtypes}
        )

    states = [example(1), example(1), example(0)]
    well(sync(cluster.drivers(3), states))

    for name, array in states[2].arrays.items():
        assert array.tobytes() == b"\1" * 48, name


def test_many_small_arrays_are_made_equal(cluster: Cluster[Communicator]) -> None:
    def example(fill: float) -> SharedState:
        return SharedState({f"layer.{i}": np.full(i % 7, fill) for i in range(1500)})

    states = [example(1), example(1), example(2)]
    well(sync(cluster.drivers(3), states))

    assert states[2].digest() == states[0].digest()


def test_entries_that_may_differ_stay_each_peers_own(cluster: Cluster[Communicator]) -> None:
    states = [large(0), large(0), large(0)]
    for value, state in enumerate(states):
        state.arrays["step"][:] = value
    states[2].arrays["weights"][0] = -1

    infos = well(sync(cluster.drivers(3), states, allow_differences={"step"}))

    assert [int(state.arrays["step"][0]) for state in states] == [0, 1, 2]
    assert states[2].arrays["weights"][0] == 0
    assert infos[2].received_blocks == 1


def test_equal_but_for_what_may_differ_moves_nothing(cluster: Cluster[Communicator]) -> None:
    states = [large(0), large(0), large(0)]
    states[1].arrays["step"][:] = 5

    infos = well(sync(cluster.drivers(3), states, allow_differences=["step"]))

    assert [info.received_bytes for info in infos] == [0, 0, 0]


def test_the_entry_whose_shape_differs_is_named(cluster: Cluster[Communicator]) -> None:
    drivers = cluster.drivers(3)
    states = [SharedState({"a": np.zeros(3), "b.weight": np.zeros((2, n))}) for n in (4, 4, 5)]

    errors = sync(drivers, states)

    for error in errors:
        assert isinstance(error, MismatchError)
        assert "'b.weight'" in str(error)
        assert "[2, 4]" in str(error)
        assert "[2, 5]" in str(error)
        assert drivers[2].comm.peer_id in error.peers


def test_bad_options_are_refused_and_nothing_is_sent(cluster: Cluster[Communicator]) -> None:
    (first, *_) = drivers = cluster.drivers(3)
    state = large(0)

    with pytest.raises(ValueError, match="'nothing', which is no array"):
        first.do(lambda comm: comm.sync_state(state, allow_differences={"nothing"}))
    with pytest.raises(TypeError, match="set of names"):
        first.do(lambda comm: comm.sync_state(state, allow_differences="step"))
    with pytest.raises(ValueError, match="upload_bytes_per_s is 1000"):
        first.do(lambda comm: comm.sync_state(state, upload_bytes_per_s=1000))
    well(sync(drivers, [large(0) for _ in range(3)]))


async def send_zeros(connection: _Connection, indices: range) -> None:
    for index in indices:
        size = connection._stage.layout.size(index)
        await connection._send([StateRecord(Kind.BLOCK, index, size).encode(), bytes(size)])


def test_a_holder_that_gives_wrong_bytes_is_left_and_named(
    cluster: Cluster[Communicator],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    drivers = cluster.drivers(3)
    liar = drivers[1].comm.peer_id
    states = [large(0), large(0), large(7)]
    send = _Connection._send_run
    spoilt: list[int] = []

    async def spoil(connection: _Connection, indices: range) -> None:
        if connection._served is by_peer.get(liar):
            spoilt.extend(indices)
            await send_zeros(connection, indices)
        else:
            await send(connection, indices)

    by_peer = {}
    for driver in drivers:
        server = driver.comm._runtime._calls.states
        serve = server.serve

        def note(plan, stage, budget, serve=serve, peer=driver.comm.peer_id):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            by_peer[peer] = serve(plan, stage, budget)
            return by_peer[peer]

        monkeypatch.setattr(server, "serve", note)
    monkeypatch.setattr(_Connection, "_send_run", spoil)

    well(sync(drivers, states))

    assert spoilt
    assert states[2].digest() == states[0].digest()
    assert any(
        liar in r.getMessage() and "not the elected" in r.getMessage() for r in caplog.records
    )


def test_an_only_holder_that_gives_wrong_bytes_is_an_error_and_nothing_is_written(
    cluster: Cluster[Communicator], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [large(0, revision=1), large(5), large(7)]
    before = [state.digest() for state in states]

    monkeypatch.setattr(_Connection, "_send_run", send_zeros)
    errors = sync(cluster.drivers(3), states)

    assert [type(error) for error in errors] == [StateError] * 3
    assert "not the elected one" in str(errors[1])
    # at least the block that was found to be wrong, by one of the two or by both
    received = [error.wire_bytes or 0 for error in errors[1:] if isinstance(error, StateError)]
    assert sum(received) > 0
    assert [state.digest() for state in states] == before


def test_who_has_no_memory_for_what_differs_is_named_and_can_call_again(
    cluster: Cluster[Communicator], monkeypatch: pytest.MonkeyPatch
) -> None:
    drivers = cluster.drivers(3)
    states = [large(0), large(0), large(1)]

    def make_stage(*_: object) -> Stage:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(state_fetch, "Stage", make_stage)
        results = sync(drivers, states)

    for result in results:
        assert type(result) is RinghaulError
        assert f"{drivers[2].comm.peer_id}: out of memory (no room)" in str(result)
    well(sync(drivers, states))
    assert states[2].digest() == states[0].digest()
    assert drivers[2].comm.generation == 1


def test_connections_that_break_cost_what_was_under_way(
    cluster: Cluster[Communicator], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [large(0, revision=1), large(5), large(7)]
    send = _Connection._send_run
    sent = [0]

    async def send_or_break(connection: _Connection, indices: range) -> None:
        for index in indices:
            sent[0] += 1
            if sent[0] % 5 == 0:
                connection._sock.close()
            await send(connection, range(index, index + 1))

    monkeypatch.setattr(_Connection, "_send_run", send_or_break)
    infos = well(sync(cluster.drivers(3), states))

    assert len({state.digest() for state in states}) == 1
    assert sent[0] > BLOCKS / 5
    assert sum(info.received_bytes for info in infos) < 4 * states[0].total_bytes
