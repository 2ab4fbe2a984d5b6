"""A peer's listening socket: proves who connects, and hands the connection on."""

import logging
import socket

import trio

from ringhaul import limits
from ringhaul.io.neighbours import Neighbours
from ringhaul.io.sockets import DataSocket, StreamEnded, close_on_fork
from ringhaul.io.state_serve import Served, StateServer
from ringhaul.wire.codec import Envelope
from ringhaul.wire.peer_messages import (
    StateRequest,
    StreamChosen,
    StreamHello,
    StreamRefused,
    StreamWelcome,
)

logger = logging.getLogger(__name__)

_HOSTS_LOGGED_MAX = 1000


def open_listener(host: str | None, port: int) -> socket.socket:
    """Listen on all interfaces, IPv6 and IPv4, unless a host is named."""
    if host is None and socket.has_dualstack_ipv6():
        try:
            sock = socket.create_server(
                ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256
            )
        except OSError:  # the kernel knows IPv6, this machine has it switched off
            sock = socket.create_server(("", port), backlog=256)
    else:
        family = socket.AF_INET6 if host and ":" in host else socket.AF_INET
        sock = socket.create_server((host or "", port), family=family, backlog=256)
    sock.setblocking(False)
    return close_on_fork(sock)


class Listener:
    """Accepts connections for as long as it runs."""

    def __init__(self, sock: socket.socket, neighbours: Neighbours, states: StateServer) -> None:
        self._sock = sock
        self._neighbours = neighbours
        self._states = states
        self._unproved = 0
        self._refused: set[str] = set()

    async def run(self, nursery: trio.Nursery) -> None:
        """Accept until cancelled."""
        try:
            while True:
                try:
                    sock, _ = self._sock.accept()
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self._sock)
                    continue
                except OSError as error:  # the connection is gone, or descriptors are short
                    logger.warning("cannot accept: %s", error)
                    await trio.sleep(0.05)
                    continue
                if self._unproved >= limits.UNPROVED_CONNECTIONS_MAX:
                    sock.close()
                    continue
                nursery.start_soon(self._prove, DataSocket(sock))
        finally:
            self._sock.close()

    async def _prove(self, sock: DataSocket) -> None:
        keep = is_proved = False
        host = sock.peer_host()
        try:
            request: StateRequest | None = None
            served: Served | None = None
            self._unproved += 1
            try:
                with trio.move_on_after(limits.HANDSHAKE_S):
                    match (await sock.receive_message()).message:
                        case StreamHello() as hello:
                            is_proved = await self._welcome(sock, hello)
                            keep = is_proved and await self._take_if_chosen(sock, hello)
                        case StateRequest() as asked:
                            request = asked
                            served = await self._states.find(asked)
                        case other:
                            raise StreamEnded(f"{type(other).__name__} from a stranger")
            finally:
                self._unproved -= 1
            if request is not None and served is not None:
                is_proved = True
                await self._states.answer(request, served, sock)
        except StreamEnded as error:
            if is_proved:
                return  # the dialler chose another of our addresses
            if host not in self._refused and len(self._refused) < _HOSTS_LOGGED_MAX:
                self._refused.add(host)  # once a host: a scanner shall not fill the log
                logger.info("closed a connection from %s: %s", host, error)
        finally:
            if not keep:
                sock.close()

    async def _welcome(self, sock: DataSocket, hello: StreamHello) -> bool:
        own = await self._neighbours.wait_identity()
        if hello.acceptor != own:
            reason = f"this is {own}, not {hello.acceptor}"
            await sock.send_message(Envelope(message=StreamRefused(reason=reason)))
            return False
        if hello.link_number == 0:
            await sock.send_message(Envelope(message=StreamRefused(reason="alive")))
            return False
        proof = await self._neighbours.wait_expected(hello)
        await sock.send_message(Envelope(message=StreamWelcome(proof=proof)))
        return True

    async def _take_if_chosen(self, sock: DataSocket, hello: StreamHello) -> bool:
        answer = (await sock.receive_message()).message
        if not isinstance(answer, StreamChosen):
            raise StreamEnded(f"{type(answer).__name__} after the welcome")
        self._neighbours.add_incoming(hello, sock)
        return True
