"""Whose content is elected, and who fetches it from whom."""

import pytest

from ringhaul import limits
from ringhaul.core.coordinator.state_sync import share_out
from ringhaul.ids import Generation, OpKey, PeerId
from ringhaul.testing.coordinator_script import Script
from ringhaul.wire.codec import Envelope, encode
from ringhaul.wire.coordinator_messages import Began, Outcome, SyncPlan, Verdict
from ringhaul.wire.records import (
    Address,
    CollectiveKind,
    Content,
    Signature,
    StateReport,
    Strategy,
    Ticket,
)

SYNC = Signature(kind=CollectiveKind.SYNC_STATE, layout="l")
OLD, NEW, OTHER = b"o" * 16, b"n" * 16, b"x" * 16


@pytest.fixture
def script() -> Script:
    script = Script()
    script.found("a", "b", "c")
    return script


def report(
    script: Script,
    name: str,
    digest: bytes,
    revision: int = 0,
    *,
    ordinal: int = 0,
    generation: int = 1,
    fetched: Content | None = None,
    strategy: Strategy = Strategy.POPULAR,
) -> None:
    message = Began(
        generation=Generation(generation),
        key=OpKey(None, ordinal),
        call_index=ordinal,
        signature=SYNC,
        state=StateReport(revision=revision, digest=digest, strategy=strategy, fetched=fetched),
    )
    script.say(name, message)


def plan(script: Script, name: str) -> SyncPlan:
    return script.heard(name, SyncPlan)[-1]


def names(script: Script, tickets: tuple[Ticket, ...]) -> set[str]:
    known = {peer_id: name for name, peer_id in script.ids.items()}
    return {known[ticket.peer] for ticket in tickets}


def verdict(script: Script, name: str) -> Verdict:
    return script.heard(name, Verdict)[-1]


def lose(script: Script, name: str, witness: str, *rest: str, generation: int = 1) -> None:
    script.kill(name, witness=witness, generation=generation)
    script.ready(*rest)


def test_a_requester_asks_all_holders_and_they_know_its_tokens(script: Script) -> None:
    for name, digest in (("a", OLD), ("b", OLD), ("c", OTHER)):
        report(script, name, digest)

    asked = plan(script, "c")
    assert names(script, asked.holders) == {"a", "b"}
    assert asked.fellows == ()
    for name in "ab":
        assert plan(script, name).holders == ()
        (theirs,) = plan(script, name).requesters
        (ours,) = [t for t in asked.holders if t.peer == script.ids[name]]
        assert (theirs.token, theirs.proof) == (ours.token, ours.proof)


def test_requesters_ask_each_other_too_and_begin_at_different_places(script: Script) -> None:
    report(script, "a", NEW, 1)
    report(script, "b", OLD)
    report(script, "c", OTHER)

    assert names(script, plan(script, "b").fellows) == {"c"}
    assert names(script, plan(script, "c").fellows) == {"b"}
    assert names(script, plan(script, "b").requesters) == {"c"}
    assert names(script, plan(script, "a").requesters) == {"b", "c"}
    assert {(plan(script, n).place, plan(script, n).requester_count) for n in "bc"} == {
        (0, 2),
        (1, 2),
    }
    (to_b,) = plan(script, "b").requesters
    (from_c,) = plan(script, "c").fellows
    assert to_b.token == from_c.token
    assert to_b.addresses == ()
    assert from_c.addresses


def test_a_second_attempt_of_a_call_elects_the_same_content(script: Script) -> None:
    report(script, "a", NEW, 1)
    report(script, "b", NEW, 1)
    report(script, "c", OTHER, 0)
    lose(script, "a", "b", "b", "c")

    report(script, "b", NEW, 1, generation=2)
    report(script, "c", OTHER, 0, generation=2)

    assert plan(script, "c").digest == NEW
    assert names(script, plan(script, "c").holders) == {"b"}


def test_what_was_fetched_before_its_last_holder_was_lost_is_served_on(script: Script) -> None:
    report(script, "a", NEW, 1)
    report(script, "b", OTHER, 0)
    report(script, "c", OTHER, 0)
    lose(script, "a", "b", "b", "c")

    report(script, "b", OTHER, generation=2, fetched=Content(1, NEW))
    report(script, "c", OTHER, generation=2)

    assert (plan(script, "c").revision, plan(script, "c").digest) == (1, NEW)
    assert names(script, plan(script, "c").holders) == {"b"}
    assert plan(script, "b").holders == ()


def test_the_loss_of_the_last_holder_is_an_error_and_not_another_election(script: Script) -> None:
    report(script, "a", NEW, 1)
    report(script, "b", OTHER, 0)
    report(script, "c", OTHER, 0)
    lose(script, "a", "b", "b", "c")

    report(script, "b", OTHER, generation=2)
    report(script, "c", OTHER, generation=2)

    for name in "bc":
        assert verdict(script, name).outcome is Outcome.NO_STATE
        assert "revision 1" in verdict(script, name).detail
    for name in "bc":
        report(script, name, OTHER, generation=2, ordinal=1)
    assert plan(script, "b").digest == OTHER


def test_a_claim_to_have_fetched_what_was_never_elected_elects_nothing(script: Script) -> None:
    report(script, "a", OLD)
    report(script, "b", OLD)
    report(script, "c", OTHER, fetched=Content(9, NEW))

    assert plan(script, "a").digest == OLD


def test_revisions_that_do_not_follow_say_what_to_set(script: Script) -> None:
    for name in "abc":
        report(script, name, OLD)
    for name in "abc":
        script.finish(name)
    for name in "abc":
        report(script, name, NEW, ordinal=1)

    assert verdict(script, "a").outcome is Outcome.NO_STATE
    assert "without a new revision" in verdict(script, "a").detail
    assert "set state.revision to 1" in verdict(script, "a").detail


def test_one_step_delayed_training_sends_and_receives_side_by_side(script: Script) -> None:
    report(script, "a", OLD, 0, strategy=Strategy.SEND_ONLY)
    report(script, "b", OLD, 0, strategy=Strategy.SEND_ONLY)
    report(script, "c", OTHER, 7, strategy=Strategy.RECEIVE_ONLY)

    assert plan(script, "a").digest == OLD
    assert names(script, plan(script, "c").holders) == {"a", "b"}


@pytest.mark.parametrize("receivers", [1, 2, 3, 7, 100, 1023])
@pytest.mark.parametrize("holders", [1, 2, 5, 40])
def test_everybody_has_a_holder_and_no_list_is_too_long(receivers: int, holders: int) -> None:
    asking = [PeerId(f"r{i}") for i in range(receivers)]
    holding = [PeerId(f"h{i}") for i in range(holders)]

    asks = share_out(asking, holding)

    assert set(asks) == set(asking)
    for name, (asked_holders, fellows) in asks.items():
        assert 1 <= len(asked_holders) == len(set(asked_holders)) <= limits.STATE_HOLDERS_MAX
        assert len(fellows) == len(set(fellows)) <= limits.STATE_FELLOWS_MAX
        assert name not in fellows
    load = [sum(h in asked for asked, _ in asks.values()) for h in holding]
    assert max(load) - min(load) <= max(load) / 2 + 2


def test_the_longest_plan_fits_a_frame() -> None:
    def ticket(addresses: int) -> Ticket:
        where = tuple(Address("h" * 255, 65535) for _ in range(addresses))
        peer = PeerId("é" * (limits.NAME_LENGTH_MAX + 16))
        return Ticket(peer, where, b"t" * 16, b"p" * 16)

    longest = SyncPlan(
        generation=Generation(2**62),
        key=OpKey("t" * limits.TAG_LENGTH_MAX, 2**32 - 1),
        revision=2**62,
        digest=NEW,
        holders=tuple(ticket(limits.ADDRESSES_MAX) for _ in range(limits.STATE_HOLDERS_MAX)),
        fellows=tuple(ticket(limits.ADDRESSES_MAX) for _ in range(limits.STATE_FELLOWS_MAX)),
        requesters=tuple(ticket(0) for _ in range(limits.PEERS_MAX)),
        place=0,
        requester_count=limits.PEERS_MAX,
    )

    assert len(encode(Envelope(message=longest))) < limits.FRAME_BYTES_MAX / 2
