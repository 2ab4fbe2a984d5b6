"""Joining, admitting, groups, leaving, barriers, and calls that do not fit together."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul import (
    CallTimeout,
    CollectiveAborted,
    Communicator,
    Membership,
    MismatchError,
    RinghaulError,
    connect,
)
from ringhaul.core.coordinator.model import Options
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver, Logged, gather, together

Members = Cluster[Communicator]
Member = Driver[Communicator]


@pytest.fixture
def cluster() -> Iterator[Members]:
    with Cluster(connect, Options(waiting_report_s=0.05)) as cluster:
        yield cluster


def founding(world_size: int) -> Callable[[str], Communicator]:
    return lambda address: connect(address, min_world_size=world_size)


def in_group(group: int, world_size: int) -> Callable[[str], Communicator]:
    return lambda address: connect(address, group=group, min_world_size=world_size)


def total(comm: Communicator, value: float = 1.0, **options: Any) -> float:  # noqa: ANN401
    array = np.array([value])
    comm.all_reduce(array, **options)
    return float(array[0])


def admit(comm: Communicator) -> Membership:
    return comm.admit(timeout_s=PATIENCE_S)


def wait_pending(members: Iterable[Member], count: int) -> None:
    """Call barriers until the members hear that so many wait."""
    deadline = time.monotonic() + PATIENCE_S
    while {member.comm.pending_peers for member in members} != {count}:
        assert time.monotonic() < deadline, "nobody waits to be admitted"
        together(members, lambda comm: comm.barrier(timeout_s=PATIENCE_S))


def grown(cluster: Members, world_size: int) -> tuple[Member, ...]:
    """A ring that goes on down to one member: its founder admits the others."""
    (first,) = cluster.drivers(1)
    others = [cluster.driver() for _ in range(world_size - 1)]
    wait_pending([first], world_size - 1)
    first.do(admit)
    gather(driver.joined for driver in others)
    return (first, *others)


def error_of(future: Future[Any]) -> RinghaulError:
    error = future.exception(PATIENCE_S)
    assert isinstance(error, RinghaulError), error
    return error


# -- joining -----------------------------------------------------------------------------------


def test_first_peer_founds_a_world_of_one_where_every_call_is_the_identity(
    cluster: Members,
) -> None:
    (alone,) = cluster.drivers(1)
    comm = alone.comm

    assert (comm.rank, comm.world_size, comm.global_world_size) == (0, 1, 1)
    assert (comm.group_count, comm.largest_group_size, comm.pending_peers) == (1, 1, 0)
    assert comm.generation >= 1
    assert alone.do(lambda comm: total(comm, 5.0)) == 5.0
    assert alone.do(lambda comm: total(comm, 5.0, op="avg")) == 5.0
    membership = alone.do(admit)
    assert not membership.admitted
    assert membership.ring_order == (comm.peer_id,)
    alone.do(Communicator.barrier)


def test_connect_returns_where_the_members_admit(cluster: Members) -> None:
    (first,) = cluster.drivers(1)
    second = cluster.driver()
    wait_pending([first], 1)
    assert not second.joined.done()

    membership = first.do(admit)

    assert membership.joined == (second.comm.peer_id,)
    assert membership.admitted
    assert membership.world_size == first.comm.world_size == second.comm.world_size == 2
    assert membership.generation == first.comm.generation == second.comm.generation
    assert membership.pending_peers == first.comm.pending_peers == 0
    assert membership.ring_order[membership.rank] == first.comm.peer_id
    assert together((first, second), total) == [2.0, 2.0]


def test_peers_that_require_a_world_size_found_it_together(cluster: Members) -> None:
    early = [cluster.driver(founding(3)) for _ in range(2)]
    late = cluster.driver(founding(3))

    comms = [late.comm, *(driver.comm for driver in early)]

    assert {comm.world_size for comm in comms} == {3}
    assert len({comm.generation for comm in comms}) == 1
    assert together((*early, late), total) == [3.0] * 3


def test_peers_that_admit_and_reduce_in_a_loop_let_newcomers_in(cluster: Members) -> None:
    def loop(comm: Communicator) -> float:
        while True:
            comm.admit(timeout_s=PATIENCE_S)
            value = total(comm, timeout_s=PATIENCE_S)
            assert value == comm.world_size
            if value == 3.0:
                return value

    drivers = [cluster.driver() for _ in range(3)]

    assert together(drivers, loop) == [3.0] * 3


def test_peers_may_admit_until_all_are_there_and_only_then_reduce(cluster: Members) -> None:
    def gather_and_loop(comm: Communicator) -> list[float]:
        while comm.world_size < 3:
            comm.admit(timeout_s=PATIENCE_S)
        return [total(comm, timeout_s=PATIENCE_S) for _ in range(5)]

    drivers = [cluster.driver() for _ in range(3)]

    assert together(drivers, gather_and_loop) == [[3.0] * 5] * 3


def test_newcomer_may_call_admit_first_while_the_members_reduce(cluster: Members) -> None:
    (first,) = cluster.drivers(1)
    second = cluster.driver()
    wait_pending([first], 1)
    first.do(admit)

    reduced = first.begin(total)
    membership = second.do(admit)

    assert not membership.admitted
    assert second.do(total) == reduced.result(PATIENCE_S) == 2.0


def test_generation_grows_with_every_admission(cluster: Members) -> None:
    (first,) = cluster.drivers(1)
    before = first.comm.generation
    cluster.driver()
    wait_pending([first], 1)

    assert first.do(admit).generation > before


def test_admission_opens_a_count_of_tags_anew(cluster: Members) -> None:
    (first,) = cluster.drivers(1)
    first.do(lambda comm: total(comm, tag="grads"))
    first.do(total)
    second = cluster.driver()
    wait_pending([first], 1)
    first.do(admit)

    sums = together((first, second), lambda comm: total(comm, tag="grads") + total(comm))

    assert sums == [4.0, 4.0]


def test_all_members_hear_the_same_number_of_pending_peers(cluster: Members) -> None:
    ring = grown(cluster, 3)
    cluster.driver()
    cluster.driver()

    wait_pending(ring, 2)

    assert [m.pending_peers for m in together(ring, admit)] == [0, 0, 0]
    assert {member.comm.world_size for member in ring} == {5}


def test_membership_changes_only_when_a_call_returns(cluster: Members) -> None:
    first, second, third = grown(cluster, 3)
    together((first, second, third), total)
    generation = first.comm.generation

    third.do(Communicator.close)

    assert [m.comm.world_size for m in (first, second)] == [3, 3]
    assert [m.comm.generation for m in (first, second)] == [generation] * 2
    assert together((first, second), total) == [2.0, 2.0]
    assert [m.comm.world_size for m in (first, second)] == [2, 2]
    assert {m.comm.generation for m in (first, second)} == {first.comm.generation}
    assert first.comm.generation > generation


def test_peer_that_leaves_costs_the_others_no_error(cluster: Members) -> None:
    first, second, third = grown(cluster, 3)

    with Logged("waits for") as reported:
        waiting = [m.begin(total) for m in (first, second)]
        reported.wait()
    third.do(Communicator.close)

    assert gather(waiting) == [2.0, 2.0]
    second.do(Communicator.close)
    assert first.do(total) == 1.0
    assert first.comm.world_size == first.comm.global_world_size == 1


def test_loss_raises_for_all_who_asked_for_it(cluster: Members) -> None:
    first, second, third = grown(cluster, 3)
    array = np.ones(3)

    with Logged("waits for") as reported:
        waiting = first.begin(lambda comm: comm.all_reduce(array, on_loss="raise"))
        reported.wait()
    third.do(Communicator.close)

    error = error_of(waiting)
    assert isinstance(error, CollectiveAborted)
    assert error.peers == (third.comm.peer_id,)
    with pytest.raises(CollectiveAborted, match=third.comm.peer_id):
        second.do(lambda comm: total(comm, on_loss="raise"))
    np.testing.assert_array_equal(array, np.ones(3))
    assert first.comm.world_size == 2
    assert together((first, second), total) == [2.0, 2.0]


def test_names_are_the_beginning_of_peer_ids(cluster: Members) -> None:
    (first,) = cluster.drivers(1, lambda address: connect(address, name="ada"))

    assert first.comm.peer_id.startswith("ada-")
    assert first.comm.peer_id in repr(first.comm)


def test_below_the_required_world_size_calls_abort_and_admit_waits_for_more(
    cluster: Members,
) -> None:
    first, second = cluster.drivers(2, founding(2))
    second.do(Communicator.close)
    array = np.ones(3)

    with pytest.raises(RinghaulError, match="call admit"):
        first.do(lambda comm: comm.all_reduce(array, timeout_s=PATIENCE_S))
    admitted = first.begin(admit)
    third = cluster.driver(founding(2))

    assert third.comm.world_size == admitted.result(PATIENCE_S).world_size == 2
    assert together((first, third), total) == [2.0, 2.0]
    np.testing.assert_array_equal(array, np.ones(3))


# -- groups ------------------------------------------------------------------------------------


def test_groups_reduce_by_themselves_and_are_counted_together(cluster: Members) -> None:
    (first,) = cluster.drivers(1, in_group(0, 1))
    others = [cluster.driver(in_group(group, 1)) for group in (0, 7, 7, 7)]
    wait_pending([first], 4)

    membership = first.do(admit)
    gather(driver.joined for driver in others)

    everybody = (first, *others)
    assert together(everybody, total) == [2.0, 2.0, 3.0, 3.0, 3.0]
    assert membership.world_size == 2
    for driver in everybody:
        comm = driver.comm
        assert (comm.global_world_size, comm.group_count, comm.largest_group_size) == (5, 2, 3)


def test_admit_waits_for_the_members_of_all_groups(cluster: Members) -> None:
    (first,) = cluster.drivers(1, in_group(0, 1))
    other = cluster.driver(in_group(1, 1))
    wait_pending([first], 1)
    first.do(admit)
    assert other.comm.group_count == 2
    together((first, other), total)

    with pytest.raises(CallTimeout) as caught:
        first.do(lambda comm: comm.admit(timeout_s=0.2))

    assert caught.value.peers == (other.comm.peer_id,)
    with pytest.raises(CallTimeout):  # it failed for all, also for who comes later
        other.do(admit)
    assert [m.admitted for m in together((first, other), admit)] == [False, False]


# -- barriers, mismatches, timeouts ------------------------------------------------------------


def test_barrier_returns_when_the_last_has_come(cluster: Members) -> None:
    first, second = cluster.drivers(2, founding(2))

    waiting = first.begin(Communicator.barrier)
    with pytest.raises(TimeoutError):
        waiting.result(0.1)
    second.do(Communicator.barrier)

    waiting.result(PATIENCE_S)


def test_different_arguments_are_a_mismatch_that_names_both(cluster: Members) -> None:
    first, second = cluster.drivers(2, founding(2))
    arrays: list[NDArray[Any]] = [np.ones(3, np.float32), np.ones(4, np.float32)]
    calls = [
        first.begin(lambda comm: comm.all_reduce(arrays[0])),
        second.begin(lambda comm: comm.all_reduce(arrays[1])),
    ]

    errors = [error_of(call) for call in calls]

    for error in errors:
        assert isinstance(error, MismatchError)
        assert set(error.peers) == {first.comm.peer_id, second.comm.peer_id}
        assert "3 x float32" in str(error)
        assert "4 x float32" in str(error)
    np.testing.assert_array_equal(arrays[0], np.ones(3))
    assert together((first, second), total) == [2.0, 2.0]


@pytest.mark.parametrize("options", [{"op": "max"}, {"on_loss": "raise"}])
def test_differing_options_are_a_mismatch(cluster: Members, options: dict[str, Any]) -> None:
    first, second = cluster.drivers(2, founding(2))

    calls = [first.begin(total), second.begin(lambda comm: total(comm, **options))]

    assert {type(error_of(call)) for call in calls} == {MismatchError}


def test_barrier_against_all_reduce_is_a_mismatch(cluster: Members) -> None:
    first, second = cluster.drivers(2, founding(2))

    barrier, reduced = first.begin(Communicator.barrier), second.begin(total)

    for error in (error_of(barrier), error_of(reduced)):
        assert isinstance(error, MismatchError)
        assert "barrier" in str(error)
        assert "all_reduce" in str(error)


def test_admit_against_all_reduce_is_a_mismatch_that_names_both(cluster: Members) -> None:
    first, second = cluster.drivers(2, founding(2))
    together((first, second), total)

    admitted, reduced = first.begin(admit), second.begin(total)

    for error in (error_of(admitted), error_of(reduced)):
        assert isinstance(error, MismatchError)
        assert set(error.peers) == {first.comm.peer_id, second.comm.peer_id}
        assert "admit" in str(error)
        assert "all_reduce" in str(error)


def test_timeout_says_who_was_missing_and_ends_the_call_for_all(cluster: Members) -> None:
    first, second = cluster.drivers(2, founding(2))
    array = np.ones(3)

    with pytest.raises(CallTimeout) as caught:
        first.do(lambda comm: comm.all_reduce(array, tag="grads", timeout_s=0.2))

    assert caught.value.peers == (second.comm.peer_id,)
    assert second.comm.peer_id in str(caught.value)
    assert caught.value.tag == "grads"
    assert isinstance(caught.value, TimeoutError)
    np.testing.assert_array_equal(array, np.ones(3))
    with pytest.raises(CallTimeout, match=first.comm.peer_id):
        second.do(lambda comm: comm.all_reduce(np.ones(3), tag="grads"))
    assert together((first, second), total) == [2.0, 2.0]


def test_timeout_of_a_barrier_says_who_was_missing(cluster: Members) -> None:
    first, second = cluster.drivers(2, founding(2))

    with pytest.raises(CallTimeout) as caught:
        first.do(lambda comm: comm.barrier(timeout_s=0.2))

    assert caught.value.peers == (second.comm.peer_id,)
