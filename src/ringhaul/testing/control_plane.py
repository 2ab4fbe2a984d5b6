"""Simulated control connections: ordered, delayed, reset, swallowed.

What is sent goes through the real encoding.
"""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import TYPE_CHECKING

from ringhaul.core.coordinator.machine import LinkAccepted
from ringhaul.core.peer.steps import DialFailed, Dialled
from ringhaul.core.steps import LinkLost, Received
from ringhaul.ids import LinkId
from ringhaul.wire.codec import Envelope, decode, encode

if TYPE_CHECKING:
    from ringhaul.testing.process import Process
    from ringhaul.testing.simulator import World


@dataclasses.dataclass(slots=True)
class Connection:
    """One connection between a process and the coordinator."""

    link: LinkId
    process: Process
    coordinator_open: bool = True
    peer_open: bool = True
    #: Nothing that is under way, or sent from now on, arrives.
    is_cut: bool = False
    #: The same, one way only.
    up_cut: bool = False
    down_cut: bool = False
    #: When the last message each way arrives: none overtakes another.
    up_at: float = 0.0
    down_at: float = 0.0


class ControlPlane:
    """All control connections of a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._numbers = itertools.count(1)
        self.connections: dict[LinkId, Connection] = {}

    def dial(self, process: Process) -> None:
        """Connect a process to the coordinator, after a while."""
        self._world.agenda.after(self._latency_s(), lambda: self._connect(process))

    def _connect(self, process: Process) -> None:
        agenda = self._world.agenda
        if not process.is_alive:
            return
        if self._world.is_faulty and agenda.chance(0.1):
            process.deliver(DialFailed("the dice said so"))
            return
        if not self._world.coordinator.is_up:
            process.deliver(DialFailed("nobody listens"))
            return
        link = LinkId(next(self._numbers))
        connection = self.connections[link] = Connection(link, process)
        process.connection = connection
        self._world.step_coordinator(LinkAccepted(link, f"192.0.2.{process.index}"))
        connection.down_at = agenda.now + self._latency_s()
        agenda.at(connection.down_at, lambda: process.deliver(Dialled(link)))

    def send_up(self, link: LinkId, envelope: Envelope) -> None:
        """Peer -> coordinator."""
        connection = self.connections[link]
        data = encode(envelope)
        delay_s = self._latency_s()
        delay_s += self._world.weather.control_delay_s(connection.process, is_up=True)
        connection.up_at = max(connection.up_at, self._world.agenda.now + delay_s)

        def arrive() -> None:
            if connection.coordinator_open and not (connection.is_cut or connection.up_cut):
                self._world.step_coordinator(Received(link, decode(data)))

        if connection.peer_open and not connection.is_cut:
            self._world.agenda.at(connection.up_at, arrive)

    def send_down(self, link: LinkId, envelope: Envelope) -> None:
        """Coordinator -> peer."""
        connection = self.connections[link]
        data = encode(envelope)
        delay_s = self._latency_s()
        delay_s += self._world.weather.control_delay_s(connection.process, is_up=False)
        connection.down_at = max(connection.down_at, self._world.agenda.now + delay_s)

        def arrive() -> None:
            if connection.peer_open and not (connection.is_cut or connection.down_cut):
                connection.process.deliver(Received(link, decode(data)))

        if connection.coordinator_open and not connection.is_cut:
            self._world.agenda.at(connection.down_at, arrive)

    def is_open(self, link: LinkId) -> bool:
        """Has the peer not closed it?"""
        return self.connections[link].peer_open

    def end_from_peer(self, connection: Connection, reason: str) -> None:
        """The peer closes, or its kernel does; what it sent before still arrives."""
        if connection.peer_open:
            connection.peer_open = False
            if not (connection.is_cut or connection.up_cut):
                at = max(connection.up_at, self._world.agenda.now + self._latency_s())
                self._world.agenda.at(at, lambda: self._tell_coordinator(connection, reason))

    def end_from_coordinator(self, link: LinkId, reason: str) -> None:
        """The coordinator closes; what it sent before still arrives."""
        connection = self.connections[link]
        connection.coordinator_open = False
        if not (connection.is_cut or connection.down_cut):
            at = max(connection.down_at, self._world.agenda.now + self._latency_s())
            self._world.agenda.at(at, lambda: self._tell_peer(connection, reason))

    def reset(self, connection: Connection) -> None:
        """The connection breaks; each end learns of it in its own time."""
        connection.is_cut = True
        agenda = self._world.agenda
        late_s = agenda.between(0.5, 4.0) if agenda.chance(0.3) else 0.0
        for delay_s, tell in (
            (late_s if agenda.chance(0.7) else 0.0, self._tell_coordinator),
            (late_s if agenda.chance(0.2) else 0.0, self._tell_peer),
        ):
            at = agenda.now + delay_s + self._latency_s()
            agenda.at(at, lambda tell=tell: tell(connection, "reset"))  # type: ignore[misc]

    def swallow(self, connection: Connection) -> None:
        """A pulled cable: nothing arrives any more, and nobody is told."""
        connection.is_cut = True

    def cut_one_way(self, connection: Connection, *, is_up: bool) -> None:
        """Nothing arrives any more in one direction, and nobody is told."""
        if is_up:
            connection.up_cut = True
        else:
            connection.down_cut = True

    def half_open(self, connection: Connection, *, tells_peer: bool) -> None:
        """One end finds the connection broken, the other is never told."""
        connection.is_cut = True
        tell = self._tell_peer if tells_peer else self._tell_coordinator
        self._world.agenda.after(self._latency_s(), lambda: tell(connection, "half-open"))

    def on_coordinator_death(self) -> None:
        """All connections end; what was under way may arrive or not."""
        for connection in list(self.connections.values()):
            if not connection.coordinator_open:
                continue
            if self._world.agenda.chance(0.5):
                self.end_from_coordinator(connection.link, "the coordinator died")
            else:
                connection.coordinator_open = False
                connection.is_cut = True
                at = self._world.agenda.now + self._latency_s()
                tell = partial(self._tell_peer, connection, "reset: the coordinator died")
                self._world.agenda.at(at, tell)

    def _tell_coordinator(self, connection: Connection, reason: str) -> None:
        if connection.coordinator_open:
            connection.coordinator_open = False
            self._world.step_coordinator(LinkLost(connection.link, reason))

    def _tell_peer(self, connection: Connection, reason: str) -> None:
        if connection.peer_open:
            connection.peer_open = False
            connection.process.deliver(LinkLost(connection.link, reason))

    def _latency_s(self) -> float:
        agenda = self._world.agenda
        if self._world.is_faulty and agenda.chance(0.03):
            return agenda.between(0.1, 0.6)
        return agenda.between(0.001, 0.03)
