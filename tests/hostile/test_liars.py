"""A member that lies: it is closed with a reason, and the others notice no more than a loss."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ringhaul.communicator import Communicator
from ringhaul.ids import Generation, OpKey, PeerId, ReduceOp
from ringhaul.io.coordinator_server import Options
from ringhaul.joining import connect
from ringhaul.testing.liar import Ended, Liar
from ringhaul.testing.threads import Cluster, Driver, gather, together
from ringhaul.wire.coordinator_messages import (
    Began,
    Finished,
    GiveUp,
    GiveUpVote,
    LinkFailed,
    LinkReady,
    Outcome,
    Proposal,
    Vote,
    VoteOutcome,
)
from ringhaul.wire.message import Message
from ringhaul.wire.records import CollectiveKind, Signature, StateReport, Strategy
from ringhaul.wire.segment_header import PAYLOAD_BYTES_MAX, SegmentHeader, SegmentKind
from ringhaul.wire.session_messages import Evicted, Heartbeat, Refused

HONEST = 3
COUNT = 4
KEY = OpKey(None, 0)
SIGNATURE = Signature(
    kind=CollectiveKind.ALL_REDUCE, op=ReduceOp.SUM, dtype="float32", element_count=COUNT
)
FUTURE = Generation(99)
#: Small where a lie is to be found out by its silence.
OPTIONS = Options(session_grace_s=0.5, proposal_s=1.0)


@dataclass
class Stage:
    """Honest members, and one that is not."""

    cluster: Cluster[Communicator]
    honest: tuple[Driver[Communicator], ...]
    liar: Liar

    def id_of(self, index: int) -> PeerId:
        return PeerId(self.honest[index].comm.peer_id)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Cluster(lambda address: connect(address, min_world_size=HONEST), OPTIONS) as cluster:
        honest = cluster.drivers(HONEST)
        with Liar(cluster.address) as liar:
            liar.say_hello()
            admitted = [driver.begin(lambda comm: comm.admit()) for driver in honest]
            liar.join()
            gather(admitted)
            yield Stage(cluster, honest, liar)


def reduce_once(comm: Communicator) -> tuple[float, int]:
    values = np.ones(COUNT, np.float32)
    info = comm.all_reduce(values)
    assert set(values) == {values[0]}
    return float(values[0]), info.world_size


def began(generation: int, **changes: object) -> Began:
    message = Began(generation=Generation(generation), key=KEY, call_index=0, signature=SIGNATURE)
    return replace(message, **changes)  # type: ignore[arg-type]


Words = Callable[[int], list[Message]]
LIES: dict[str, tuple[Words, str]] = {
    "a generation that never was": (lambda _: [began(FUTURE)], "which is not open"),
    "begins twice": (lambda g: [began(g), began(g)], "began #0 twice"),
    "finishes what it has not begun": (
        lambda g: [Finished(generation=Generation(g), key=OpKey("x", 7))],
        "which it has not begun",
    ),
    "finishes twice": (
        lambda g: [began(g), *[Finished(generation=Generation(g), key=KEY)] * 2],
        "finished #0 twice",
    ),
    "finishes in a generation that never was": (
        lambda _: [Finished(generation=FUTURE, key=KEY)],
        "which is not open",
    ),
    "gives up in a generation that never was": (
        lambda _: [GiveUp(generation=FUTURE, key=KEY, outcome=Outcome.FAILED, detail="")],
        "which is not open",
    ),
    "a state outside of sync_state": (
        lambda g: [began(g, state=StateReport(
            revision=0, digest=bytes(16), strategy=Strategy.POPULAR))],
        "only there",
    ),
    "votes in a generation that never was": (
        lambda _: [Vote(generation=FUTURE, index=0, calls_made=0, fresh=False)],
        "which is not open",
    ),
    "votes out of turn": (
        lambda g: [Vote(generation=Generation(g), index=5, calls_made=0, fresh=False)],
        "out of turn",
    ),
    "votes twice": (
        lambda g: [Vote(generation=Generation(g), index=0, calls_made=1, fresh=False)] * 2,
        "out of turn",
    ),
    "gives up an admit out of turn": (
        lambda g: [GiveUpVote(
            generation=Generation(g), index=9, outcome=VoteOutcome.TIMEOUT, detail="")],
        "out of turn",
    ),
    "a link of a ring that was never proposed": (
        lambda _: [LinkReady(generation=FUTURE)],
        "was not proposed",
    ),
    "a broken link of a ring that was never proposed": (
        lambda _: [LinkFailed(
            generation=FUTURE, neighbour=PeerId("x"), refused=True, reason="")],
        "was not proposed",
    ),
    "speaks as the coordinator": (lambda _: [Evicted(reason="you")], "does not send Evicted"),
    "answers a ping that was not sent": (
        lambda _: [Heartbeat(pong=10**9)],
        "a ping that was not sent",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_liar_is_out_with_a_reason_and_the_others_get_their_sum(stage: Stage, lie: str) -> None:
    words, reason = LIES[lie]
    reduced = [driver.begin(reduce_once) for driver in stage.honest]

    for message in words(stage.liar.generation):
        stage.liar.say(message, numbered=not isinstance(message, Heartbeat))

    assert reason in stage.liar.hear(Evicted).reason
    assert gather(reduced) == [(HONEST, HONEST)] * HONEST
    assert together(stage.honest, reduce_once) == [(HONEST, HONEST)] * HONEST


ENVELOPES: dict[str, tuple[dict[str, object], str]] = {
    "acknowledges what was not sent": ({"ack": 10**6}, "acknowledges 1000000"),
    "skips a number": ({"skip": 4}, "follows"),
    "of another run": ({"run_id": b"x" * 16}, "another run"),
    "of another incarnation": ({"incarnation": 2**60}, "another run or incarnation"),
}


@pytest.mark.parametrize("lie", ENVELOPES)
def test_a_lie_in_the_envelope_is_one_too(stage: Stage, lie: str) -> None:
    envelope, reason = ENVELOPES[lie]
    reduced = [driver.begin(reduce_once) for driver in stage.honest]

    stage.liar.say(began(stage.liar.generation), **envelope)  # type: ignore[arg-type]

    assert reason in stage.liar.hear(Evicted).reason
    assert gather(reduced) == [(HONEST, HONEST)] * HONEST


@pytest.mark.parametrize("accused", ["itself", "no neighbour"])
def test_only_links_of_its_own_may_be_reported(stage: Stage, accused: str) -> None:
    reduced = [driver.begin(reduce_once) for driver in stage.honest]
    assert stage.liar.opened is not None
    ring = stage.liar.opened.ring_order
    across = ring[ring.index(PeerId(stage.liar.own_id)) - 2]

    message = LinkFailed(
        generation=Generation(stage.liar.generation),
        neighbour=across if accused == "no neighbour" else PeerId(stage.liar.own_id),
        refused=True,
        reason="so I say",
    )
    stage.liar.say(message)

    assert "no neighbour" in stage.liar.hear(Evicted).reason
    assert gather(reduced) == [(HONEST, HONEST)] * HONEST


def test_garbage_in_a_session_ends_the_connection_and_the_session_with_it(stage: Stage) -> None:
    reduced = [driver.begin(reduce_once) for driver in stage.honest]

    stage.liar.wire.sock.sendall(b"\0\0\0\1\xc1")

    assert "not a message" in stage.liar.hear(Refused).reason
    assert gather(reduced) == [(HONEST, HONEST)] * HONEST  # it does not resume


def test_who_claims_to_be_another_is_refused_and_the_other_goes_on(stage: Stage) -> None:
    victim = stage.id_of(0)

    answer = stage.liar.resume_as(victim, bytes(16))

    assert isinstance(answer, Refused)
    assert answer.unknown_session
    stage.liar.wire.sock.close()
    assert together(stage.honest, reduce_once) == [(HONEST, HONEST)] * HONEST
    assert stage.honest[0].comm.peer_id == victim


def test_who_accuses_everybody_all_the_time_is_the_only_one_to_go(stage: Stage) -> None:
    """Each accusation costs a new ring; when no ring can include it, it is out."""
    reduced = [driver.begin(reduce_once) for driver in stage.honest]
    honest = {stage.id_of(index) for index in range(HONEST)}

    with pytest.raises(Ended):
        accuse_for_ever(stage.liar)

    assert gather(reduced) == [(HONEST, HONEST)] * HONEST
    assert {driver.comm.peer_id for driver in stage.honest} == honest


def accuse_for_ever(liar: Liar) -> None:
    assert liar.proposal is not None
    proposal = liar.proposal
    for _ in range(100):
        for ticket in (proposal.next, proposal.previous):
            assert ticket is not None
            accusation = LinkFailed(
                generation=proposal.generation,
                neighbour=ticket.peer,
                refused=True,
                reason="so I say",
            )
            liar.say(accusation)
        proposal = liar.hear(Proposal)


def send_garbage_for_ever(liar: Liar) -> None:
    for _ in range(100):
        assert liar.to_next is not None
        with contextlib.suppress(OSError):
            liar.to_next.sock.sendall(b"x" * 100)
        liar.follow(liar.hear(Proposal))


def header(**changes: object) -> bytes:
    facts: dict[str, object] = {
        "kind": SegmentKind.REDUCE_SCATTER,
        "generation": 2,
        "tag_hash": 0,
        "ordinal": 0,
        "signature": 0,
        "chunk": 0,
        "segment": 0,
        "payload_bytes": 4,
        **changes,
    }
    return SegmentHeader(**facts).pack()  # type: ignore[arg-type]


DATA: dict[str, bytes] = {
    "garbage": b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n",
    "a huge payload": header(payload_bytes=PAYLOAD_BYTES_MAX)[:-4] + b"\xff" * 4,
    "an acknowledgement": header(kind=SegmentKind.ACK, payload_bytes=0),
    "a grant": header(kind=SegmentKind.GRANT, payload_bytes=0),
    "more early data than is allowed": (
        header(ordinal=7, payload_bytes=PAYLOAD_BYTES_MAX) + bytes(PAYLOAD_BYTES_MAX)
    ) * 4,
    "data of another shape, then silence": header(signature=7) + bytes(4),
    "data that is cut off": header(payload_bytes=1000) + bytes(500),
}  # fmt: skip


@pytest.mark.parametrize("lie", DATA)
def test_hostile_data_cost_the_others_nothing_but_a_ring_without_the_liar(
    stage: Stage, lie: str
) -> None:
    reduced = [driver.begin(reduce_once) for driver in stage.honest]
    assert stage.liar.to_next is not None

    with contextlib.suppress(OSError):  # it may be closed before all is said
        stage.liar.to_next.sock.sendall(DATA[lie])
    stage.liar.wire.sock.close()

    assert gather(reduced) == [(HONEST, HONEST)] * HONEST


REPLIES: dict[str, bytes] = {
    "garbage": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    "acknowledges what was not sent": header(kind=SegmentKind.ACK, segment=1000, payload_bytes=0),
    "sends data against the ring": header(),
    "grants what nobody asked for": header(kind=SegmentKind.GRANT, ordinal=9, payload_bytes=0)
    * 1000,
}


@pytest.mark.parametrize("lie", REPLIES)
def test_hostile_answers_to_data_cost_no_more(stage: Stage, lie: str) -> None:
    reduced = [driver.begin(reduce_once) for driver in stage.honest]
    (wire, *_) = stage.liar.from_previous

    with contextlib.suppress(OSError):
        wire.sock.sendall(REPLIES[lie])
    stage.liar.wire.sock.close()

    assert gather(reduced) == [(HONEST, HONEST)] * HONEST


def test_a_liar_that_keeps_its_session_and_breaks_every_link_is_out_in_the_end(
    stage: Stage,
) -> None:
    """It answers pings and reports links as ready; its data are garbage in every ring."""
    liar = stage.liar
    reduced = [driver.begin(reduce_once) for driver in stage.honest]

    with pytest.raises(Ended):
        send_garbage_for_ever(liar)

    assert gather(reduced) == [(HONEST, HONEST)] * HONEST
