"""SIGKILL of real processes in the middle of a `sync_state`.

Every survivor ends with the elected content, or with a named error and what it had.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringhaul.testing.processes import CoordinatorProcess, Event, PeerProcess

pytestmark = pytest.mark.slow

MIB = 24
ELECTED, STALE = ("--content", "1", "--revision", "1"), ("--content", "2")


@contextlib.contextmanager
def peers(
    *options: tuple[str, ...], coordinator: CoordinatorProcess | None = None
) -> Iterator[list[PeerProcess]]:
    """So many members, each with a state of its own, that sync once."""
    with contextlib.ExitStack() as stack:
        coordinator = coordinator or stack.enter_context(CoordinatorProcess())
        size = ("--sync-mib", str(MIB), "--members", str(len(options)))
        started = [
            stack.enter_context(PeerProcess(coordinator.address, index, *size, *each))
            for index, each in enumerate(options)
        ]
        for peer in started:
            peer.expect("ready")
        yield started


def synced(peer: PeerProcess) -> Event:
    return peer.expect("synced")


@pytest.mark.parametrize("block", [1, 4])
def test_a_killed_holder_costs_the_others_nothing_but_time(block: int) -> None:
    with peers((*ELECTED, "--die-at-block", str(block)), ELECTED, STALE, STALE) as started:
        started[0].expect("dying")

        for peer in started[1:]:
            end = synced(peer)
            assert end["content"] == 1, end
            assert end["revision"] == 1


def test_what_was_fetched_before_a_loss_is_not_fetched_again() -> None:
    late, slow = ("--die-at-block", str(MIB // 2)), ("--upload-bytes-per-s", "3e6")
    with peers((*ELECTED, *late), (*ELECTED, *slow), STALE) as started:
        started[0].expect("dying")

        end = synced(started[2])
        assert end["content"] == 1, end
        assert end["received_bytes"] < 1.6 * MIB * 2**20


@pytest.mark.parametrize("block", [1, 7])
def test_a_killed_requester_costs_the_others_nothing_but_time(block: int) -> None:
    with peers(ELECTED, STALE, (*STALE, "--die-at-block", str(block))) as started:
        started[2].expect("dying")

        for peer in started[:2]:
            assert synced(peer)["content"] == 1


@pytest.mark.parametrize("block", [1, 7])
def test_the_last_holder_killed_is_an_error_and_nothing_is_written(block: int) -> None:
    with peers((*ELECTED, "--die-at-block", str(block)), STALE, STALE) as started:
        started[0].expect("dying")

        for peer in started[1:]:
            end = synced(peer)
            assert (end["content"], end["revision"]) == (2, 0), end
            assert end["kind"] == "StateError", end


def test_a_coordinator_killed_in_the_middle_and_started_again_costs_nothing_but_time(
    tmp_path: Path,
) -> None:
    options = ("--journal", str(tmp_path / "journal"))
    slow = (*ELECTED, "--upload-bytes-per-s", "3e6")
    with (
        CoordinatorProcess(options=options) as coordinator,
        peers(slow, STALE, (*STALE, "--say-at-block", "5"), coordinator=coordinator) as started,
    ):
        started[2].expect("at_block")
        coordinator.kill()
        coordinator.wait()
        port = int(coordinator.address.rpartition(":")[2])
        with CoordinatorProcess(port=port, options=options):
            for peer in started:
                end = synced(peer)
                assert (end["content"], end["revision"]) == (1, 1), end
