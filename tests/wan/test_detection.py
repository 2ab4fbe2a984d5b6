"""Peers that fall silent and links that break, over real TCP without a single reset."""

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from ringhaul.testing.processes import CoordinatorProcess, Event, PeerProcess
from ringhaul.testing.wan import Wan, why_unavailable

REASON = why_unavailable()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]
#: A stalled link and a dial that is not answered are given up as fast as a test likes.
IMPATIENT = ("--limit", "LINK_STALLED_S=2", "--limit", "LINK_DIAL_S=1.5")
PATIENCE_S = 60.0


class Site:
    """Peers, each on a host of its own, and a coordinator on the last."""

    def __init__(self, stack: contextlib.ExitStack, peers: int, spare: int) -> None:
        self.wan = stack.enter_context(Wan(peers + 1, delay_ms=2))
        self.hub = peers
        with self.wan.inside(self.hub):
            self.coordinator = stack.enter_context(CoordinatorProcess(self.wan.address(self.hub)))
        self.peers = []
        for host in range(peers):
            words = ("--min-world-size", str(peers - spare), "--count", "100000", *IMPATIENT)
            with self.wan.inside(host):
                peer = PeerProcess(self.coordinator.address, host, "--admit", *words)
            self.peers.append(stack.enter_context(peer))
        for peer in self.peers:
            names = round_of(peer, peers)["contributors"]
        self.ring = [int(name.split("-")[0][1:]) for name in names]

    def evicted(self) -> list[str]:
        return [line for line in self.coordinator.errors if " is out: " in line]


@contextlib.contextmanager
def site(peers: int, *, spare: int = 0) -> Iterator[Site]:
    """A ring of all of them, of which so many may be lost."""
    with contextlib.ExitStack() as stack:
        yield Site(stack, peers, spare)


def round_of(peer: PeerProcess, world_size: int, *, after: int = 0) -> Event:
    """The next committed round of a later generation, among so many; all are checked."""
    while True:
        event = peer.expect_any("round", "error", timeout_s=PATIENCE_S)
        assert event["event"] == "round", event
        assert event["right"], event
        if event["generation"] > after and len(event["contributors"]) == world_size:
            return event


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def cut(wan: Wan, a: int, b: int, *, both: bool) -> None:
    wan.cut(a, b)
    if both:
        wan.cut(b, a)


@pytest.mark.parametrize("both", [False, True], ids=["one way", "two ways"])
def test_a_pair_that_cannot_talk_is_kept_apart_and_nobody_is_lost(both: bool) -> None:
    peers = 4
    with site(peers) as at:
        generation = round_of(at.peers[0], peers)["generation"]
        first, second = at.ring[:2]

        cut(at.wan, first, second, both=both)
        for peer in at.peers:
            round_of(peer, peers, after=generation)

        assert at.wan.stats().pieces["cut"] > 0
        assert at.evicted() == []


def test_of_three_that_need_a_broken_pair_one_of_the_pair_goes_and_two_go_on() -> None:
    """What is lost one way only: no connection works the other way either."""
    with site(3, spare=1) as at:
        first, second, third = at.ring

        cut(at.wan, first, second, both=False)
        event = round_of(at.peers[third], 2)

        assert f"w{third}" in {name.split("-")[0] for name in event["contributors"]}
        assert len(at.evicted()) == 1


def test_a_pulled_cable_is_found_by_silence_and_the_others_go_on() -> None:
    victim = 2
    with site(3, spare=1) as at:
        for host in range(4):
            if host != victim:
                cut(at.wan, victim, host, both=True)

        for index, peer in enumerate(at.peers):
            if index != victim:
                round_of(peer, 2)

        (line,) = at.evicted()
        assert f"w{victim}-" in line
        assert "nothing was heard" in line


def test_a_coordinator_that_hears_nobody_blames_nobody() -> None:
    """All fall silent at once: it is the coordinator's cable. It is plugged in again."""
    with site(2) as at:
        lost = at.wan.stats().pieces.get("cut", 0)
        for host in range(2):
            cut(at.wan, host, at.hub, both=True)
        wait_until(lambda: at.wan.stats().pieces.get("cut", 0) >= lost + 6)  # heartbeats
        for host in range(2):
            at.wan.heal(host, at.hub)
            at.wan.heal(at.hub, host)

        for peer in at.peers:
            for _ in range(5):
                round_of(peer, 2)
        assert at.evicted() == []
