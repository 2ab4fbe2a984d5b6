"""What all states of one exploration share: the machines' cells, names, the scenario."""

from dataclasses import dataclass

from ringhaul.core.coordinator.machine import Coordinator
from ringhaul.core.peer.machine import Peer, PeerOptions
from ringhaul.core.steps import LinkLost, Received
from ringhaul.ids import LinkId, PeerId, ReduceOp
from ringhaul.testing.explore.cells import Cells
from ringhaul.testing.explore.effects import Op, Teller
from ringhaul.testing.explore.world import END, Process, World
from ringhaul.wire.records import Address, CollectiveKind, Signature

#: Where all clocks begin.
START_S = 1.0

ADMIT = None
SUM = Signature(kind=CollectiveKind.ALL_REDUCE, op=ReduceOp.SUM, dtype="float32", element_count=8)
BARRIER = Signature(kind=CollectiveKind.BARRIER)


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a program; no signature: `admit`."""

    signature: Signature | None
    tag: str | None = None


#: The calls of one step are made together.
Script = tuple[tuple[Request, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A small world: which programs run in it, and what may happen to it, once."""

    name: str
    #: Of those that are members from the start, in the order of the ring.
    members: tuple[Script, ...]
    #: Of those that come at some time.
    joiners: tuple[Script, ...] = ()
    faults: tuple[str, ...] = ()
    #: All messages acknowledge others, as they do in earnest: more states.
    acks: bool = False

    @property
    def scripts(self) -> tuple[Script, ...]:
        """Of all, by place."""
        return self.members + self.joiners


class Lab:
    """Cells, names and scripts of one exploration."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.scripts = scenario.scripts
        self.teller = Teller(acks=scenario.acks)
        self.coordinators: Cells[Coordinator, Op] = Cells(self.teller.told)
        self.peers: Cells[Peer, Op] = Cells(self.teller.told)
        self._received: dict[tuple[bool, LinkId, int], int] = {}

    def empty_world(self) -> World:
        """Nobody runs but the coordinator."""
        coordinator = Coordinator(run_id=bytes(16), incarnation=1, secret=b"explored" * 2)
        processes = [
            Process(self.peers.put(Peer(self._options(place)), START_S))
            for place in range(len(self.scripts))
        ]
        return World(self.coordinators.put(coordinator, START_S), tuple(processes))

    def _options(self, place: int) -> PeerOptions:
        address = Address(f"192.0.2.{place}", 1000)
        return PeerOptions(coordinator="explored", name=f"p{place}", group=0, addresses=(address,))

    def place_of(self, peer_id: PeerId) -> int:
        """Which process has this id."""
        return int(peer_id[1 : peer_id.index("-")])

    def received(self, link: LinkId, message: int, *, at_peer: bool) -> int:
        """The event that this message, or the end of the connection, arrives."""
        known = self._received.get((at_peer, link, message))
        if known is None:
            event: LinkLost | Received = LinkLost(link, "it ended")
            if message != END:
                event = Received(link, self.teller.envelope(message))
            cells = self.peers if at_peer else self.coordinators
            known = self._received[at_peer, link, message] = cells.event(event)
        return known
