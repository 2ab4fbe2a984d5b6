"""Arguments of a wrong kind are refused before a byte is sent; numbers of NumPy are numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ringhaul import ClosedError, Communicator, SharedState, connect
from ringhaul.testing.threads import Cluster


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("address", 5),
        ("address", b"127.0.0.1:1"),
        ("group", 1.5),
        ("group", "0"),
        ("group", True),
        ("streams", 2.5),
        ("streams", "2"),
        ("name", 5),
        ("min_world_size", 1.5),
        ("min_world_size", None),
        ("timeout_s", "5"),
        ("timeout_s", True),
        ("admission_timeout_s", "5"),
        ("listen", 5),
        ("advertise", "10.0.0.1"),
        ("advertise", None),
        ("advertise", [5]),
    ],
)
def test_connect_names_the_argument_of_a_wrong_kind(name: str, value: object) -> None:
    options: dict[str, Any] = {"address": "127.0.0.1:1", "timeout_s": 0.1, name: value}

    with pytest.raises(TypeError, match=rf"{name}\b"):
        connect(**options)


def test_numbers_of_numpy_are_numbers_and_connect_takes_them_in_the_order_of_its_signature() -> (
    None
):
    def make(address: str) -> Communicator:
        options: list[Any] = [np.int64(3), np.int32(2), "a", np.uint8(1), np.float32(30), None]
        return connect(address, *options)

    with Cluster(make) as cluster:
        (driver,) = cluster.drivers(1)
        values = [np.ones(2), np.ones(3)]
        window: Any = np.int64(2)

        driver.do(lambda comm: comm.barrier(timeout_s=np.float64(30)))
        driver.do(lambda comm: comm.all_reduce_many(values, max_in_flight=window))

        assert driver.comm.peer_id.startswith("a-")


@pytest.mark.parametrize("seconds", [0, -1.0, 10**400, float("nan")])
def test_a_time_that_makes_no_sense_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="number of seconds above 0"):
        connect("127.0.0.1:1", timeout_s=seconds)


def test_reaching_the_coordinator_may_take_as_long_as_it_takes() -> None:
    with Cluster(lambda address: connect(address, timeout_s=None)) as cluster:
        cluster.drivers(1)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda comm: comm.barrier(timeout_s="5"), "timeout_s"),
        (lambda comm: comm.admit(timeout_s=True), "timeout_s"),
        (lambda comm: comm.all_reduce(np.ones(1), tag=5), "tag"),
        (lambda comm: comm.all_reduce_many([np.ones(1)], max_in_flight=1.5), "max_in_flight"),
        (lambda comm: comm.broadcast(np.ones(1), 0.0), "root"),
        (lambda comm: comm.sync_state(state(), allow_differences=None), "allow_differences"),
        (lambda comm: comm.sync_state(state(), allow_differences=[5, "a"]), "allow_differences"),
        (lambda comm: comm.sync_state(state(), upload_bytes_per_s="1e6"), "upload_bytes_per_s"),
        (lambda comm: comm.sync_state({"a": np.ones(1)}), "state"),
        (lambda comm: SharedState([np.ones(1)]), "arrays"),  # type: ignore[arg-type]
    ],
)
def test_calls_name_the_argument_of_a_wrong_kind(
    call: Callable[[Communicator], object], what: str
) -> None:
    with Cluster(connect) as cluster:
        (driver,) = cluster.drivers(1)

        with pytest.raises(TypeError, match=rf"{what}\b"):
            driver.do(call)


def test_a_strategy_that_cannot_be_hashed_is_no_strategy() -> None:
    with Cluster(connect) as cluster:
        (driver,) = cluster.drivers(1)

        with pytest.raises(ValueError, match="'popular', 'send_only', 'receive_only'"):
            driver.do(lambda comm: comm.sync_state(state(), []))  # type: ignore[arg-type]


def state() -> SharedState:
    return SharedState({"a": np.ones(1)})


def test_no_arrays_to_reduce_are_refused_as_any_by_a_closed_communicator() -> None:
    with Cluster(connect) as cluster:
        (driver,) = cluster.drivers(1)
        assert driver.do(lambda comm: comm.all_reduce_many([])) == []

        driver.do(lambda comm: comm.close())

        with pytest.raises(ClosedError):
            driver.do(lambda comm: comm.all_reduce_many([]))
