"""Every order of deliveries in small worlds; `python -m ringhaul.testing explore` does all."""

import pytest

from ringhaul.core.coordinator import collectives
from ringhaul.core.coordinator.model import Group, Proposed, Run
from ringhaul.core.peer.machine import Peer, PeerOptions
from ringhaul.core.peer.steps import DialFailed, Started
from ringhaul.ids import Generation, PeerId
from ringhaul.testing.explore.facts import copied, freeze
from ringhaul.testing.explore.scenarios import scenario
from ringhaul.testing.explore.search import explore
from ringhaul.wire.coordinator_messages import Outcome

#: Seconds each; all others are visited by command.
SMALL = (
    ("pair", "kill"),
    ("pair", "vanish"),
    ("pair", "interrupt"),
    ("pair", "swallow"),
    ("pair", "reset"),
    ("reduce", "none"),
    ("admit", "none"),
    ("votes", "none"),
)


@pytest.mark.parametrize(("world", "fault"), SMALL)
def test_no_order_of_deliveries_breaks_a_promise(world: str, fault: str) -> None:
    findings = explore(scenario(world, () if fault == "none" else (fault,)))

    assert findings.violations == []
    assert findings.ends > 0
    assert findings.states > 100


def test_acknowledgements_on_all_messages_change_nothing() -> None:
    findings = explore(scenario("pair", ("reset",), acks=True))

    assert findings.violations == []


def test_a_state_is_visited_once() -> None:
    first = explore(scenario("pair", ("kill",)))
    second = explore(scenario("pair", ("kill",)))

    assert (first.states, first.transitions) == (second.states, second.transitions)
    assert first.transitions > first.states


def test_a_broken_machine_is_found_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def commit_early(run: Run, group: Group, lost: PeerId, reason: str) -> None:
        for key in list(group.open):
            collectives.give_verdict(run, group, key, Outcome.COMMITTED)

    monkeypatch.setattr(collectives, "on_loss", commit_early)

    findings = explore(scenario("pair", ("kill",)))

    (violation,) = findings.violations
    assert "IS KILLED" in violation
    assert "calls all_reduce" in violation


def test_a_call_that_never_ends_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "abort_all", lambda *_: None)
    monkeypatch.setattr(collectives, "on_loss", lambda *_: None)

    findings = explore(scenario("pair", ("kill",)))

    assert findings.violations != []


def machine() -> Peer:
    return Peer(PeerOptions(coordinator="nowhere", name="p", group=0, addresses=()))


def test_only_the_time_since_an_instant_counts() -> None:
    def proposed(since: float) -> Proposed:
        return Proposed(generation=Generation(1), ring_order=(PeerId("p"),), since=since)

    assert freeze(proposed(1.0), now=2.5) == freeze(proposed(51.0), now=52.5)
    assert freeze(proposed(1.0), now=2.5) != freeze(proposed(1.0), now=3.5)


def test_a_copy_is_equal_and_shares_nothing_that_changes() -> None:
    peer = machine()
    peer.step(Started(), 1.0)
    before = freeze(peer, 1.0)

    copy = copied(peer, {})
    assert isinstance(copy, Peer)
    assert freeze(copy, 1.0) == before
    copy.step(DialFailed("refused"), 1.0)

    assert freeze(peer, 1.0) == before
    assert freeze(copy, 1.0) != before
