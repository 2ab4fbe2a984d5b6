"""A broadcast's root is a peer: what both machines do when it is lost, or was."""

from dataclasses import replace

import pytest

from ringhaul.core.peer.steps import (
    BeginTransfer,
    CollectiveCalled,
    Effect,
    Fail,
)
from ringhaul.errors import CollectiveAborted, WireError
from ringhaul.ids import CallId, Generation, OnLoss, OpKey, PeerId, ReduceOp
from ringhaul.testing.coordinator_script import Script
from ringhaul.testing.peer_script import COUNTS, ME, OTHER, PeerScript
from ringhaul.wire.codec import Envelope, decode, encode
from ringhaul.wire.coordinator_messages import Began, Outcome, Proposal, Verdict
from ringhaul.wire.records import CollectiveKind, Signature
from ringhaul.wire.session_messages import Leave

BROADCAST = Signature(
    kind=CollectiveKind.BROADCAST, dtype="float32", element_count=4, root=PeerId("nobody")
)


@pytest.fixture
def script() -> Script:
    made = Script()
    made.found("a", "b", "c")
    return made


def from_(script: Script, name: str, on_loss: OnLoss = OnLoss.RETRY) -> Signature:
    return replace(BROADCAST, root=script.ids[name], on_loss=on_loss)


def verdicts(script: Script, name: str) -> list[tuple[Outcome, tuple[PeerId, ...]]]:
    return [(verdict.outcome, verdict.culprits) for verdict in script.heard(name, Verdict)]


# -- the coordinator ---------------------------------------------------------------------------


@pytest.mark.parametrize("on_loss", OnLoss)
def test_a_lost_root_fails_the_broadcast_for_all(script: Script, on_loss: OnLoss) -> None:
    for name in "abc":
        script.begin(name, signature=from_(script, "c", on_loss))
    script.finish("c")
    script.finish("a")
    script.kill("c", witness="b")

    lost = [(Outcome.LOST, (script.ids["c"],))]
    assert verdicts(script, "a") == verdicts(script, "b") == lost
    assert "the root, was lost" in script.heard("a", Verdict)[0].detail


def test_a_root_that_leaves_before_it_began_fails_the_broadcast_too(script: Script) -> None:
    script.begin("a", signature=from_(script, "c"))
    script.say("c", Leave())

    assert verdicts(script, "b") == [(Outcome.LOST, (script.ids["c"],))]


def test_who_comes_later_to_a_broadcast_whose_root_is_lost_opens_nothing(script: Script) -> None:
    script.begin("a", signature=from_(script, "c"))
    script.kill("c", witness="b")
    script.ready("a", "b")
    script.begin("b", generation=2, signature=from_(script, "c"))

    assert script.coordinator.run.groups[0].open == {}
    assert len(verdicts(script, "b")) == 1


def test_a_broadcast_that_all_survivors_have_is_committed_though_its_root_is_lost(
    script: Script,
) -> None:
    for name in "abc":
        script.begin(name, signature=from_(script, "c"))
    for name in "ab":
        script.finish(name)
    script.kill("c", witness="b")

    assert verdicts(script, "a") == [(Outcome.COMMITTED, ())]
    assert script.ids["c"] in script.heard("a", Verdict)[0].ring_order


def test_a_broadcast_that_loses_another_member_is_run_again(script: Script) -> None:
    for name in "abc":
        script.begin(name, signature=from_(script, "a"))
    script.kill("c", witness="b")

    assert verdicts(script, "a") == [(Outcome.ABORTED, (script.ids["c"],))]


def test_a_root_that_was_lost_before_the_call_fails_it_at_once_for_all(script: Script) -> None:
    signature = from_(script, "c")
    script.kill("c", witness="b")
    script.ready("a", "b")
    script.begin("a", generation=2, signature=signature)

    lost = [(Outcome.LOST, (script.ids["c"],))]
    assert verdicts(script, "a") == verdicts(script, "b") == lost
    assert script.heard("b", Verdict)[0].ring_order == (script.ids["a"], script.ids["b"])
    script.begin("b", generation=2, signature=signature)
    assert script.coordinator.run.groups[0].open == {}
    assert script.heard("a", Proposal)[-1].generation == 2  # nothing has to be repaired


def test_a_broadcast_begun_while_the_loss_of_its_root_is_repaired_waits_for_the_ring(
    script: Script,
) -> None:
    signature = from_(script, "c")
    script.kill("c", witness="b")
    script.begin("a", generation=1, signature=signature)

    assert verdicts(script, "a") == []


def test_members_that_name_different_roots_are_a_mismatch(script: Script) -> None:
    script.begin("a", signature=from_(script, "a"))
    script.begin("b", signature=from_(script, "b"))

    assert verdicts(script, "c") == [(Outcome.MISMATCH, (script.ids["a"], script.ids["b"]))]
    detail = script.heard("c", Verdict)[0].detail
    assert f"root={script.ids['a']}" in detail
    assert f"root={script.ids['b']}" in detail


@pytest.mark.parametrize(
    "other",
    [
        Signature(kind=CollectiveKind.BARRIER),
        Signature(kind=CollectiveKind.ALL_GATHER, dtype="float32", element_count=4),
        *(
            Signature(kind=kind, op=ReduceOp.SUM, dtype="float32", element_count=4)
            for kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.REDUCE_SCATTER)
        ),
    ],
    ids=lambda other: other.kind.value,
)
def test_members_that_call_other_kinds_are_a_mismatch(script: Script, other: Signature) -> None:
    script.begin("a", signature=from_(script, "a"))
    script.begin("b", signature=other)

    assert [outcome for outcome, _ in verdicts(script, "c")] == [Outcome.MISMATCH]


@pytest.mark.parametrize(
    "bad",
    [
        replace(BROADCAST, root=None),
        replace(BROADCAST, op=ReduceOp.SUM),
        Signature(kind=CollectiveKind.ALL_GATHER, root=PeerId("a")),
        Signature(kind=CollectiveKind.REDUCE_SCATTER),
    ],
    ids=str,
)
def test_a_signature_that_makes_no_sense_is_no_message(bad: Signature) -> None:
    began = Began(generation=Generation(1), key=OpKey(None, 0), call_index=0, signature=bad)
    data = encode(Envelope(message=began))

    for _ in range(2):  # what was refused is not remembered
        with pytest.raises(WireError, match="only there"):
            decode(data)


# -- the peer ----------------------------------------------------------------------------------


@pytest.fixture
def member() -> PeerScript:
    made = PeerScript()
    made.join()
    return made


def call(member: PeerScript, root: PeerId) -> list[Effect]:
    signature = replace(BROADCAST, root=root)
    return member.step(CollectiveCalled(call=CallId(1), tag=None, signature=signature))


def test_a_transfer_is_told_where_the_root_stands_in_the_ring(member: PeerScript) -> None:
    call(member, OTHER)

    (begin,) = member.those(BeginTransfer)
    assert (begin.rank, begin.root, begin.world_size) == (0, 1, 2)


def test_a_broadcast_goes_to_the_coordinator_though_its_root_is_gone(member: PeerScript) -> None:
    call(member, PeerId("gone-3"))

    assert member.said(Began)[0].signature.root == "gone-3"
    assert member.those(BeginTransfer) == []


def lost(root: PeerId, ring_order: tuple[PeerId, ...]) -> Verdict:
    return Verdict(
        generation=Generation(1),
        key=OpKey(None, 0),
        outcome=Outcome.LOST,
        ring_order=ring_order,
        counts=COUNTS,
        culprits=(root,),
        detail="the root was lost",
    )


def test_a_call_whose_root_was_lost_before_fails_without_waiting_for_a_generation(
    member: PeerScript,
) -> None:
    call(member, PeerId("gone-3"))
    member.hear(lost(PeerId("gone-3"), (ME, OTHER)))

    (fail,) = member.those(Fail)
    assert isinstance(fail.error, CollectiveAborted)
    assert fail.error.peers == ("gone-3",)
    assert fail.view is not None
    assert fail.view.generation == 1


def test_who_comes_later_to_a_key_whose_root_was_lost_before_fails_alike(
    member: PeerScript,
) -> None:
    member.hear(lost(PeerId("gone-3"), (ME, OTHER)))
    call(member, PeerId("gone-3"))

    (fail,) = member.those(Fail)
    assert fail.view is not None
    assert fail.view.generation == 1
    assert member.said(Began) == []


def test_a_call_whose_root_is_lost_in_the_middle_ends_in_the_next_generation(
    member: PeerScript,
) -> None:
    call(member, OTHER)
    member.hear(lost(OTHER, (ME, OTHER)))
    assert member.those(Fail) == []

    member.propose(2)
    member.open(2)

    (fail,) = member.those(Fail)
    assert isinstance(fail.error, CollectiveAborted)
    assert fail.view is not None
    assert fail.view.generation == 2
    assert member.those(BeginTransfer) == []
