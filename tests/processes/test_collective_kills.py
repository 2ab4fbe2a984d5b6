"""SIGKILL of real processes in the other collectives; every result is checked exactly."""

import contextlib
from collections.abc import Iterator

import pytest

from ringhaul.testing.processes import CoordinatorProcess, Event, PeerProcess

pytestmark = pytest.mark.slow

KINDS = ("broadcast", "all_gather", "reduce_scatter")


@pytest.fixture
def coordinator() -> Iterator[CoordinatorProcess]:
    with CoordinatorProcess() as process:
        yield process


@contextlib.contextmanager
def ring(coordinator: CoordinatorProcess, *options: str) -> Iterator[list[PeerProcess]]:
    """Three members that loop; their ranks are as their names: w0 is the root."""
    with contextlib.ExitStack() as stack:
        started = []
        for index in range(3):
            peer = PeerProcess(coordinator.address, index, "--admit", *options)
            started.append(stack.enter_context(peer))
            assert peer.expect("joined")["rank"] == index
        for peer in started:
            round_of(peer, 3)
        yield started


def round_of(peer: PeerProcess, world_size: int, errors: list[Event] | None = None) -> Event:
    """The next committed round among so many; what comes before is checked too."""
    while True:
        event = peer.expect_any("round", "error")
        if event["event"] == "error":
            assert errors is not None, event
            assert event["untouched"], event
            errors.append(event)
            continue
        assert event["right"], event
        if len(event["contributors"]) == world_size:
            return event


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [64, 1_000_000])
def test_a_kill_costs_the_others_no_error(
    coordinator: CoordinatorProcess, kind: str, count: int
) -> None:
    with ring(coordinator, "--collective", kind, "--count", str(count)) as (a, b, c):
        c.kill()

        for peer in (a, b):
            event = round_of(peer, 2)
            assert event.get("source") in (None, ["w0"])
            assert event["world_size"] == 2


@pytest.mark.parametrize("out", [(), ("--out",)])
def test_a_killed_root_aborts_on_all_or_none_and_the_next_rank_goes_on(
    coordinator: CoordinatorProcess, out: tuple[str, ...]
) -> None:
    options = ("--collective", "broadcast", "--count", "4000000", *out)
    with ring(coordinator, *options) as (root, b, c):
        root.kill()

        errors: list[list[Event]] = []
        for peer in (b, c):
            errors.append([])
            event = round_of(peer, 2, errors[-1])
            assert event["source"] == ["w1"]
        # the kill may fall between two calls, or after all had it; but both hear the same
        assert [[e["kind"] for e in heard] for heard in errors] in (
            [[], []],
            [["CollectiveAborted"]] * 2,
        )
        for event in (e for heard in errors for e in heard):
            assert "the root" in event["text"]
            assert event["peers"][0].startswith("w0-")
            assert event["world_size"] == 2
