"""Words to write coordinator tests with: who joins, begins, finishes, and what is sent."""

from typing import TypeVar

from ringhaul import limits
from ringhaul.core.coordinator.machine import Coordinator, Event, LinkAccepted
from ringhaul.core.coordinator.model import Effect
from ringhaul.core.steps import LinkLost, Received, Send, Tick
from ringhaul.ids import Generation, LinkId, OpKey, PeerId, ReduceOp
from ringhaul.wire.codec import Envelope
from ringhaul.wire.coordinator_messages import (
    Began,
    Finished,
    LinkFailed,
    LinkReady,
    Opened,
    Proposal,
    Vote,
)
from ringhaul.wire.message import Message
from ringhaul.wire.records import Address, CollectiveKind, Signature
from ringhaul.wire.session_messages import Heartbeat, Hello, Resume, Welcome

SUM = Signature(kind=CollectiveKind.ALL_REDUCE, op=ReduceOp.SUM, dtype="float32", element_count=4)
M = TypeVar("M", bound=Message)


class Script:
    """A coordinator, the peers that talk to it, and all it has sent."""

    def __init__(self) -> None:
        self.coordinator = Coordinator(
            run_id=b"r" * 16, incarnation=1, secret=b"s" * 16, check_every=1
        )
        self.now = 0.0
        self.sent: list[tuple[LinkId, Message]] = []
        self.effects: list[Effect] = []
        self.ids: dict[str, PeerId] = {}
        self.secrets: dict[str, bytes] = {}
        self.links: dict[str, LinkId] = {}
        self.seqs: dict[str, int] = {}
        self._link_count = 0

    def step(self, event: Event) -> list[Effect]:
        self.effects = self.coordinator.step(event, self.now)
        self.sent += [(e.link, e.envelope.message) for e in self.effects if isinstance(e, Send)]
        return self.effects

    def accept(self) -> LinkId:
        self._link_count += 1
        link = LinkId(self._link_count)
        self.step(LinkAccepted(link, "192.0.2.1"))
        return link

    def say(self, name: str, message: Message, *, seq: int | None = None) -> None:
        if seq is None:
            self.seqs[name] += 1
            seq = self.seqs[name]
        envelope = Envelope(message=message, run_id=b"r" * 16, incarnation=1, seq=seq)
        self.step(Received(self.links[name], envelope))

    def connect(self, name: str, *, group: int = 0, min_world_size: int = 1) -> None:
        link = self.accept()
        hello = Hello(
            version=limits.PROTOCOL_VERSION,
            name=name,
            group=group,
            addresses=(Address("192.0.2.9", 1000),),
            min_world_size=min_world_size,
        )
        self.step(Received(link, Envelope(message=hello)))
        self.links[name] = link
        self.seqs[name] = 0
        welcome = self.heard(name, Welcome)[-1]
        self.ids[name], self.secrets[name] = welcome.peer, welcome.secret

    def resume(self, name: str) -> None:
        self.links[name] = self.accept()
        message = Resume(
            version=limits.PROTOCOL_VERSION,
            peer=self.ids[name],
            secret=self.secrets[name],
            group=0,
            addresses=(Address("192.0.2.9", 1000),),
            min_world_size=1,
        )
        self.say(name, message, seq=0)

    def found(self, *names: str) -> None:
        """Connect so many peers and open their first generation."""
        for name in names:
            self.connect(name, min_world_size=len(names))
        self.ready(*names)

    def ready(self, *names: str) -> None:
        for name in names:
            generation = self.heard(name, Proposal)[-1].generation
            self.say(name, LinkReady(generation=generation))

    def begin(
        self,
        name: str,
        ordinal: int = 0,
        *,
        generation: int = 1,
        signature: Signature = SUM,
    ) -> None:
        message = Began(
            generation=Generation(generation),
            key=OpKey(None, ordinal),
            call_index=ordinal,
            signature=signature,
        )
        self.say(name, message)

    def finish(
        self, name: str, ordinal: int = 0, *, generation: int = 1, digest: bytes | None = None
    ) -> None:
        key = OpKey(None, ordinal)
        self.say(name, Finished(generation=Generation(generation), key=key, digest=digest))

    def vote(
        self,
        name: str,
        *,
        generation: int = 1,
        index: int = 0,
        calls_made: int = 0,
        fresh: bool = False,
    ) -> None:
        message = Vote(
            generation=Generation(generation), index=index, calls_made=calls_made, fresh=fresh
        )
        self.say(name, message)

    def lose_link(self, name: str) -> None:
        self.step(LinkLost(self.links[name], "reset"))

    def report(self, name: str, neighbour: str, *, refused: bool, generation: int = 1) -> None:
        message = LinkFailed(
            generation=Generation(generation),
            neighbour=self.ids[neighbour],
            refused=refused,
            reason="broken",
        )
        self.say(name, message)

    def fail_dials(self, name: str, neighbour: str) -> None:
        """Report again and again that the next rank, who lives, cannot be reached."""
        for _ in range(limits.DIAL_FAILURES_MAX):
            generation = self.heard(name, Proposal)[-1].generation
            self.report(name, neighbour, refused=False, generation=generation)
            ping = self.heard(neighbour, Heartbeat)[-1].ping
            self.say(neighbour, Heartbeat(pong=ping), seq=0)

    def kill(self, name: str, *, witness: str, generation: int = 1) -> None:
        self.lose_link(name)
        self.report(witness, name, refused=True, generation=generation)

    def wait(self, duration_s: float, *, heard: tuple[str, ...] = ()) -> None:
        """Let time pass, with all ticks; these peers send heartbeats meanwhile."""
        until = self.now + duration_s
        while (at := self.coordinator.next_deadline()) <= until:
            self.now = max(self.now, at)
            self.step(Tick())
            for name in heard:
                self.say(name, Heartbeat(), seq=0)
        self.now = until

    def heard(self, name: str, kind: type[M]) -> list[M]:
        link = self.links[name]
        return [m for to, m in self.sent if to == link and isinstance(m, kind)]

    def ring(self, group: int = 0) -> tuple[PeerId, ...]:
        return self.coordinator.run.groups[group].ring_order

    def opened(self, name: str) -> Opened:
        return self.heard(name, Opened)[-1]
