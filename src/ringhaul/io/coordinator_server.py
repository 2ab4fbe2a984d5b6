"""The coordinator over TCP: listeners, connections, the timer; drives the state machine.

Decides nothing about the protocol. It bounds what strangers may hold: how many connections,
and for how long without saying who they are.
"""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import assert_never

import trio

from ringhaul import limits
from ringhaul.core.coordinator.machine import Coordinator, Event, LinkAccepted, Options
from ringhaul.core.coordinator.model import Effect
from ringhaul.core.steps import Close, LinkLost, Log, Received, Send, Tick
from ringhaul.errors import InvariantError, WireError
from ringhaul.ids import LinkId
from ringhaul.io.link import MessageLink
from ringhaul.io.reactor import Reactor
from ringhaul.wire.codec import Envelope
from ringhaul.wire.records import Address
from ringhaul.wire.session_messages import Refused

__all__ = ["Options", "serve_coordinator"]

logger = logging.getLogger(__name__)

_RUN_ID_BYTES = 16
_SECRET_BYTES = 32
#: Without a journal every start is a new run, and the first incarnation of it.
_FIRST_INCARNATION = 1


async def serve_coordinator(
    listen_host: str,
    listen_port: int,
    *,
    options: Options | None = None,
    started: Callable[[str], None] | None = None,
    handshake_s: float = limits.HANDSHAKE_S,
) -> None:
    """Be the coordinator of a new run, until cancelled.

    Args:
        listen_host: IPv4 or IPv6 address or host name; "" for every interface.
        listen_port: 0 for any free port.
        options: what an operator may set.
        started: called once connections are taken, with the address, as `HOST:PORT`.
        handshake_s: a connection that has not said who it is within this is closed.

    Raises:
        OSError: the address cannot be listened on.
        InvariantError: a bug of ringhaul; it has been logged with its story.

    Cancelling closes all connections at once.
    """
    machine = Coordinator(
        run_id=secrets.token_bytes(_RUN_ID_BYTES),
        incarnation=_FIRST_INCARNATION,
        secret=secrets.token_bytes(_SECRET_BYTES),
        options=options or Options(),
    )
    listeners = await _open_listeners(listen_host, listen_port)
    try:
        if started is not None:
            started(_address_of(listeners[0].socket))
        await _Server(machine, handshake_s=handshake_s).run(listeners)
    finally:
        for listener in listeners:
            listener.socket.close()


async def _open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on every address of `host`; on one only if the port is to be chosen.

    Each address would get a port of its own, and only one can be told.
    """
    listeners = await trio.open_tcp_listeners(port, host=host or None)
    if port == 0:
        for surplus in listeners[1:]:
            surplus.socket.close()
        del listeners[1:]
    return listeners


def _address_of(sock: trio.socket.SocketType) -> str:
    """Where a listener listens, as users write it."""
    host, port = sock.getsockname()[:2]
    return str(Address(host, port))


@dataclass(slots=True)
class _Connection:
    """One open connection. `is_known`: the machine has it among its links."""

    link: MessageLink
    host: str
    is_known: bool = True
    #: It said who it is, and the machine took it.
    proved: trio.Event = field(default_factory=trio.Event)


class _Server:
    """Feeds the machine with what happens, and does what it says."""

    def __init__(self, machine: Coordinator, *, handshake_s: float) -> None:
        self._machine = machine
        self._handshake_s = handshake_s
        #: Every connection whose stream is open; some of them only drain.
        self._connections: dict[LinkId, _Connection] = {}
        self._accepted_count = 0
        self._reactor = Reactor()
        self._timer = trio.CancelScope()
        self._everything = trio.CancelScope()
        self._failure: InvariantError | None = None
        self._last_refusal = ""

    async def run(self, listeners: list[trio.SocketListener]) -> None:
        """Serve until cancelled, or until the machine fails."""
        with self._everything:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._reactor.run)
                nursery.start_soon(self._keep_time)
                await trio.serve_listeners(self._serve, listeners, handler_nursery=nursery)
        if self._failure is not None:
            raise self._failure

    # -- the machine --------------------------------------------------------------------------

    def _step(self, event: Event) -> None:
        """Tell the machine what happened, and do what it says."""
        if self._failure is not None:
            return
        try:
            effects = self._machine.step(event, trio.current_time())
        except InvariantError as error:
            logger.critical("a bug of ringhaul, please report it: %s", error)
            self._failure = error
            self._everything.cancel()
            return
        for effect in effects:
            self._perform(effect)
        deadline = self._machine.next_deadline()
        if deadline != self._timer.deadline:
            self._timer.deadline = deadline

    def _perform(self, effect: Effect) -> None:
        """Do one thing the machine wants done. Connections that ended are passed over."""
        match effect:
            case Send(link_id, envelope):
                connection = self._connections.get(link_id)
                if connection is not None:
                    logger.debug("link %d: send %s", link_id, type(envelope.message).__name__)
                    connection.link.send_nowait(envelope)
            case Close(link_id, reason):
                connection = self._connections.get(link_id)
                if connection is not None:
                    connection.is_known = False
                    connection.link.close_nowait(reason)
            case Log(text, important):
                logger.log(logging.INFO if important else logging.DEBUG, "%s", text)
            case _:
                assert_never(effect)

    async def _keep_time(self) -> None:
        """Step a `Tick` whenever one is due."""
        while True:
            self._timer = trio.CancelScope(deadline=self._machine.next_deadline())
            with self._timer:
                await trio.sleep_forever()
            # Bytes that wait to be read may show that a peer lives: read first, then judge.
            self._reactor.handle_ready()
            if self._machine.next_deadline() <= trio.current_time():
                self._step(Tick())

    # -- connections --------------------------------------------------------------------------

    async def _serve(self, stream: trio.SocketStream) -> None:
        """Look after one connection until it ends."""
        try:
            host = str(stream.socket.getpeername()[0])
        except OSError:  # it is gone already
            stream.socket.close()
            return
        unproved_count = sum(not c.proved.is_set() for c in self._connections.values())
        if unproved_count >= limits.UNPROVED_CONNECTIONS_MAX:
            self._log_refusal(host, f"{unproved_count} connections have not said who they are")
            stream.socket.close()
            return
        self._accepted_count += 1
        link_id = LinkId(self._accepted_count)
        link = MessageLink(
            stream, self._reactor, on_wire_error=partial(self._on_wire_error, link_id)
        )
        connection = self._connections[link_id] = _Connection(link, host)
        self._step(LinkAccepted(link_id, host))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._await_proof, link_id, connection)
                reason = await link.run(partial(self._on_envelope, link_id, connection))
                nursery.cancel_scope.cancel()
        finally:
            del self._connections[link_id]
        self._lose(link_id, connection, reason)

    def _on_envelope(self, link_id: LinkId, connection: _Connection, envelope: Envelope) -> None:
        """Hand a message to the machine; note when it has found out who sends."""
        logger.debug("link %d: received %s", link_id, type(envelope.message).__name__)
        self._step(Received(link_id, envelope))
        if not connection.proved.is_set():
            _, peer_id = self._machine.run.links.get(link_id, ("", None))
            if peer_id is not None:
                connection.proved.set()

    async def _await_proof(self, link_id: LinkId, connection: _Connection) -> None:
        """Close a connection that does not say who it is."""
        with trio.move_on_after(self._handshake_s):
            await connection.proved.wait()
            return
        if connection.is_known:
            reason = f"neither hello nor resume came within {self._handshake_s:g} s"
            connection.link.send_nowait(self._refuse(link_id, connection, reason))
            connection.link.close_nowait(reason)

    def _on_wire_error(self, link_id: LinkId, error: WireError) -> Envelope:
        """A connection sent what is no message; return the answer."""
        return self._refuse(link_id, self._connections[link_id], f"not a message: {error}")

    def _refuse(self, link_id: LinkId, connection: _Connection, reason: str) -> Envelope:
        """Take a connection from the machine; return what to tell the other side."""
        self._log_refusal(connection.host, reason)
        self._lose(link_id, connection, reason)
        run = self._machine.run
        message = Refused(reason=reason[: limits.TEXT_LENGTH_MAX])
        return Envelope(message=message, run_id=run.run_id, incarnation=run.incarnation)

    def _lose(self, link_id: LinkId, connection: _Connection, reason: str) -> None:
        """Tell the machine that a connection is gone, unless it knows."""
        if connection.is_known:
            connection.is_known = False
            self._step(LinkLost(link_id, reason))

    def _log_refusal(self, host: str, reason: str) -> None:
        """Log a refusal when it differs from the last one: somebody may try in a loop."""
        text = f"refused a connection from {host}: {reason}"
        if text != self._last_refusal:
            self._last_refusal = text
            logger.info("%s", text)
