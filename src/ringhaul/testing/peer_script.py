"""Words to write peer tests with: what the coordinator says, and what the peer does."""

from dataclasses import replace
from typing import TypeVar

from ringhaul.core.peer.machine import Peer, PeerOptions
from ringhaul.core.peer.steps import (
    CollectiveCalled,
    Dialled,
    Effect,
    Event,
    Started,
    TransferDone,
)
from ringhaul.core.steps import Received, Send, Tick
from ringhaul.ids import CallId, Generation, LinkId, OpKey, PeerId, ReduceOp
from ringhaul.wire.codec import Envelope
from ringhaul.wire.coordinator_messages import (
    Opened,
    Outcome,
    Proposal,
    Verdict,
    VoteOutcome,
    VoteResult,
)
from ringhaul.wire.message import Message
from ringhaul.wire.records import Address, CollectiveKind, Counts, Signature, Ticket
from ringhaul.wire.session_messages import Welcome

COUNTS = Counts(pending_peers=0, global_world_size=2, group_count=1, largest_group_size=2)
SUM = Signature(kind=CollectiveKind.ALL_REDUCE, op=ReduceOp.SUM, dtype="float32", element_count=4)
ME, OTHER = PeerId("me-1"), PeerId("other-2")
TICKET = Ticket(OTHER, (), bytes(16), bytes(16))
E = TypeVar("E", bound=Effect)
M = TypeVar("M", bound=Message)


class PeerScript:
    """A peer, its coordinator's words, and its effects."""

    def __init__(self) -> None:
        self.peer = Peer(
            PeerOptions(
                coordinator="host:1", name="me", group=0, addresses=(Address("192.0.2.1", 1),)
            ),
            check_every=1,
        )
        self.now = 0.0
        self.effects: list[Effect] = []
        self.link = LinkId(1)
        self.seq = 0
        self.decisions = 0
        self.ack = 0

    def step(self, event: Event) -> list[Effect]:
        self.effects = self.peer.step(event, self.now)
        return self.effects

    def hear(self, message: Message, *, numbered: bool = True) -> list[Effect]:
        self.seq += numbered
        if isinstance(message, (Verdict, VoteResult)) and not message.number:
            self.decisions += 1  # as a coordinator numbers them
            message = replace(message, number=self.decisions)
        envelope = Envelope(
            message=message,
            run_id=b"r" * 16,
            incarnation=1,
            seq=self.seq if numbered else 0,
            ack=self.ack,
        )
        return self.step(Received(self.link, envelope))

    def join(self) -> None:
        self.step(Started())
        self.step(Dialled(self.link))
        welcome = Welcome(peer=ME, secret=bytes(16), seen_host="x", heartbeat_interval_s=1.0)
        self.hear(welcome, numbered=False)
        self.propose(1)
        self.open(1, admission=True, joined=(ME,))

    def propose(self, generation: int) -> list[Effect]:
        return self.hear(
            Proposal(
                generation=Generation(generation),
                ring_order=(ME, OTHER),
                next=TICKET,
                previous=TICKET,
            )
        )

    def open(
        self, generation: int, *, admission: bool = False, joined: tuple[PeerId, ...] = ()
    ) -> list[Effect]:
        return self.hear(
            Opened(
                generation=Generation(generation),
                ring_order=(ME, OTHER),
                admission=admission,
                joined=joined,
                counts=COUNTS,
            )
        )

    def verdict(
        self,
        outcome: Outcome,
        *,
        generation: int = 1,
        ordinal: int = 0,
        ring_order: tuple[PeerId, ...] = (ME, OTHER),
    ) -> list[Effect]:
        return self.hear(
            Verdict(
                generation=Generation(generation),
                key=OpKey(None, ordinal),
                outcome=outcome,
                ring_order=ring_order,
                counts=COUNTS,
                culprits=(OTHER,),
                detail="the detail",
            )
        )

    def vote_result(self, outcome: VoteOutcome, *, index: int = 0) -> list[Effect]:
        return self.hear(
            VoteResult(
                index=index,
                outcome=outcome,
                generation=Generation(1),
                ring_order=(ME, OTHER),
                counts=COUNTS,
            )
        )

    def call(self, number: int = 1, *, timeout_s: float | None = None) -> list[Effect]:
        return self.step(
            CollectiveCalled(call=CallId(number), tag=None, signature=SUM, timeout_s=timeout_s)
        )

    def finish(self, number: int = 1, *, generation: int = 1) -> list[Effect]:
        return self.step(TransferDone(CallId(number), Generation(generation)))

    def tick_at(self, now: float) -> list[Effect]:
        self.now = now
        return self.step(Tick())

    def those(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def said(self, kind: type[M]) -> list[M]:
        messages = [send.envelope.message for send in self.those(Send)]
        return [message for message in messages if isinstance(message, kind)]
