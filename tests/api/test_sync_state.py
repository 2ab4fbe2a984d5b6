"""`sync_state` over loopback TCP: who receives what, and when nobody can."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from ringhaul import (
    CallTimeout,
    Communicator,
    MismatchError,
    SharedState,
    StateError,
    SyncInfo,
    connect,
)
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver, gather

Ring = Sequence[Driver[Communicator]]


@pytest.fixture
def cluster() -> Iterator[Cluster[Communicator]]:
    with Cluster(lambda address: connect(address, min_world_size=3)) as cluster:
        yield cluster


@pytest.fixture
def ring(cluster: Cluster[Communicator]) -> Ring:
    return cluster.drivers(3)


def state(value: float, revision: int = 0, count: int = 1000) -> SharedState:
    arrays = {"weights": np.full((count, 2), value), "step": np.array(int(value))}
    return SharedState(arrays, revision=revision)


def values_of(states: Sequence[SharedState]) -> list[float]:
    """The one value of each state, whose arrays agree."""
    for each in states:
        assert (each.arrays["weights"] == float(each.arrays["step"])).all()
    return [float(each.arrays["step"]) for each in states]


def sync(
    ring: Ring, states: Sequence[SharedState], strategies: Sequence[str] = ("popular",) * 3
) -> list[SyncInfo]:
    def call(mine: SharedState, strategy: str) -> Callable[[Communicator], SyncInfo]:
        return lambda comm: comm.sync_state(mine, strategy, timeout_s=PATIENCE_S)

    triples = zip(ring, states, strategies, strict=True)
    return gather([driver.begin(call(mine, how)) for driver, mine, how in triples])


def errors_of_sync(
    ring: Ring, states: Sequence[SharedState], strategies: Sequence[str] = ("popular",) * 3
) -> list[BaseException | None]:
    def call(mine: SharedState, strategy: str) -> Callable[[Communicator], SyncInfo]:
        return lambda comm: comm.sync_state(mine, strategy, timeout_s=PATIENCE_S)

    triples = zip(ring, states, strategies, strict=True)
    futures = [driver.begin(call(mine, how)) for driver, mine, how in triples]
    return [future.exception(PATIENCE_S) for future in futures]


def test_content_that_most_members_hold_reaches_the_others(ring: Ring) -> None:
    states = [state(1.0), state(2.0), state(1.0)]

    infos = sync(ring, states)

    assert values_of(states) == [1.0, 1.0, 1.0]
    assert [info.received_bytes for info in infos] == [0, states[1].total_bytes, 0]
    assert infos[0].sources == infos[2].sources == ()
    assert set(infos[1].sources) <= {ring[0].comm.peer_id, ring[2].comm.peer_id}
    assert len(infos[1].sources) == 1
    assert {info.revision for info in infos} == {0}


def test_equal_states_move_no_bytes(ring: Ring) -> None:
    states = [state(4.0, revision=7) for _ in range(3)]

    infos = sync(ring, states)

    assert [info.received_bytes for info in infos] == [0, 0, 0]
    assert [info.revision for info in infos] == [7, 7, 7]
    assert all(info.duration_s > 0 for info in infos)


def test_in_a_new_run_the_highest_revision_wins_against_the_majority(ring: Ring) -> None:
    states = [state(1.0, 3), state(1.0, 3), state(2.0, 4)]

    sync(ring, states)

    assert values_of(states) == [2.0, 2.0, 2.0]
    assert [each.revision for each in states] == [4, 4, 4]


def test_large_state_arrives_whole(ring: Ring) -> None:
    states = [state(1.0, count=200_000), state(1.0, count=200_000), state(3.0, count=200_000)]

    infos = sync(ring, states)

    assert values_of(states) == [1.0, 1.0, 1.0]
    assert infos[2].received_bytes == states[2].total_bytes > 3_000_000


def test_newcomer_receives_the_run_s_state_whatever_it_brings() -> None:
    with Cluster(connect) as cluster:
        (first,) = cluster.drivers(1)
        old = state(1.0, revision=5)
        first.do(lambda comm: comm.sync_state(old))
        second = cluster.driver()
        while first.do(Communicator.admit).world_size < 2:
            pass
        brought = state(9.0, revision=90)

        infos = sync((first, second), [old, brought], ["popular"] * 2)

        assert values_of([old, brought]) == [1.0, 1.0]
        assert brought.revision == old.revision == 5
        assert infos[1].sources == (first.comm.peer_id,)
        assert second.comm.world_size == 2


def test_update_with_the_next_revision_is_taken(ring: Ring) -> None:
    states = [state(1.0) for _ in range(3)]
    sync(ring, states)
    states[0].arrays["weights"][:] = 5.0
    states[0].arrays["step"][...] = 5
    states[0].revision = 1

    # the newer content wins if its holders are as many as any other's, or more
    sync(ring, states, ["popular", "receive_only", "receive_only"])

    assert values_of(states) == [5.0, 5.0, 5.0]
    assert {each.revision for each in states} == {1}


def test_receive_only_content_is_no_candidate(ring: Ring) -> None:
    states = [state(1.0), state(2.0), state(1.0)]

    sync(ring, states, ["receive_only", "send_only", "receive_only"])

    assert values_of(states) == [2.0, 2.0, 2.0]


def test_send_only_content_that_loses_is_an_error_and_stays(ring: Ring) -> None:
    states = [state(1.0), state(2.0), state(1.0)]

    errors = errors_of_sync(ring, states, ["popular", "send_only", "popular"])

    assert [type(error) for error in errors] == [StateError] * 3
    assert all("send_only" in str(error) for error in errors)
    assert all(ring[1].comm.peer_id in str(error) for error in errors)
    assert values_of(states) == [1.0, 2.0, 1.0]


def test_state_that_nobody_offers_is_an_error(ring: Ring) -> None:
    states = [state(1.0), state(2.0), state(3.0)]

    errors = errors_of_sync(ring, states, ["receive_only"] * 3)

    assert [type(error) for error in errors] == [StateError] * 3
    assert values_of(states) == [1.0, 2.0, 3.0]


def test_revisions_that_do_not_follow_are_an_error_and_nothing_is_written(ring: Ring) -> None:
    states = [state(1.0) for _ in range(3)]
    sync(ring, states)
    for index, each in enumerate(states):
        each.arrays["weights"][:] = index
        each.arrays["step"][...] = index
        each.revision = 5

    errors = errors_of_sync(ring, states)

    assert [type(error) for error in errors] == [StateError] * 3
    assert all("revision" in str(error) for error in errors)
    assert values_of(states) == [0.0, 1.0, 2.0]
    assert {each.revision for each in states} == {5}


def test_states_of_another_layout_are_a_mismatch(ring: Ring) -> None:
    states = [state(1.0), state(1.0), state(1.0, count=999)]

    errors = errors_of_sync(ring, states)

    assert [type(error) for error in errors] == [MismatchError] * 3
    assert all("sync_state" in str(error) for error in errors)
    sync(ring, [state(1.0) for _ in range(3)])


def test_member_that_does_not_come_is_named(ring: Ring) -> None:
    mine = state(1.0)

    with pytest.raises(CallTimeout) as caught:
        ring[0].do(lambda comm: comm.sync_state(mine, timeout_s=0.2))

    assert set(caught.value.peers) == {ring[1].comm.peer_id, ring[2].comm.peer_id}


def test_world_of_one_keeps_its_state() -> None:
    with Cluster(connect) as cluster:
        (alone,) = cluster.drivers(1)
        mine = state(1.0, revision=3)

        info = alone.do(lambda comm: comm.sync_state(mine))

        assert (info.revision, info.received_bytes, info.sources) == (3, 0, ())
        assert values_of([mine]) == [1.0]


def test_empty_state_is_synced(ring: Ring) -> None:
    infos = sync(ring, [SharedState({}) for _ in range(3)])

    assert [info.received_bytes for info in infos] == [0, 0, 0]


def test_bad_arguments_are_refused_and_nothing_is_sent(ring: Ring) -> None:
    frozen = state(1.0)
    frozen.arrays["weights"].flags.writeable = False

    with pytest.raises(TypeError, match="not a dict"):
        ring[0].do(lambda comm: comm.sync_state({}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'receive_only'"):
        ring[0].do(lambda comm: comm.sync_state(state(1.0), "unpopular"))
    with pytest.raises(ValueError, match="read-only"):
        ring[0].do(lambda comm: comm.sync_state(frozen))

    sync(ring, [state(1.0) for _ in range(3)])
