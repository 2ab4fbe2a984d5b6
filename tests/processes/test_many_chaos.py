"""SIGKILL in the middle of `all_reduce_many`, in real processes: every array is exact."""

import contextlib
from collections.abc import Iterator

import pytest

from ringhaul.testing.processes import CoordinatorProcess, Event, PeerProcess

pytestmark = pytest.mark.slow


@pytest.fixture
def coordinator() -> Iterator[CoordinatorProcess]:
    with CoordinatorProcess() as process:
        yield process


def round_of(peer: PeerProcess, world_size: int) -> Event:
    """The first round in which so many contribute to some array; all before are checked too."""
    while True:
        event = peer.expect("round")
        assert event["right"], event["text"]
        if any(each and len(each) == world_size for each in event["contributors"]):
            return event


@pytest.mark.parametrize("on_loss", ["retry", "raise"])
def test_kill_in_the_middle_of_a_window_leaves_every_array_exact(
    coordinator: CoordinatorProcess, on_loss: str
) -> None:
    """11 operations, 3 at a time: 10 large arrays, and 190 small ones that travel together."""
    options = ["--many", "200", "--count", "600000", "--admit", "--on-loss", on_loss]
    options += ["--max-in-flight", "3"]
    with contextlib.ExitStack() as stack:

        def start(index: int, *more: str) -> PeerProcess:
            peer = PeerProcess(coordinator.address, index, *options, *more)
            return stack.enter_context(peer)

        a = start(0)
        a.expect("joined")
        b = start(1)
        for peer in (a, b):
            round_of(peer, 2)
        for victim_index in (2, 3):
            victim = start(victim_index, "--die-in-round", "1", "--die-at-operation", "7")
            victim.expect("dying")
            events = [lossy_round_of(peer) for peer in (a, b)]
            assert events[0]["contributors"] == events[1]["contributors"]
            for event in events:
                check_loss(event, on_loss)


def lossy_round_of(peer: PeerProcess) -> Event:
    """The first round that three begin and not three end; all before are checked too."""
    while True:
        event = round_of(peer, 3)
        if any(each is None or len(each) < 3 for each in event["contributors"]):
            return event


def check_loss(event: Event, on_loss: str) -> None:
    counts = {len(each) if each else 0 for each in event["contributors"]}
    if on_loss == "retry":
        assert counts == {3, 2}
        assert max(event["attempts"]) <= 2
    else:  # what the coordinator had not heard of when it was lost runs with two
        assert 3 in counts
        assert counts <= {3, 2, 0}
    assert event["kind"] == ("CollectiveAborted" if 0 in counts else "NoneType")
