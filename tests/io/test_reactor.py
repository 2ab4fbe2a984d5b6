"""The reactor: handlers of closed sockets are not called."""

import socket

import trio

from ringhaul.errors import WireError
from ringhaul.io.reactor import Reactor
from ringhaul.io.sockets import DataSocket


async def test_a_reactor_forgets_a_handler_whose_socket_is_closed() -> None:
    reactor = Reactor()
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = DataSocket(socket.create_connection(server.getsockname()))
        far = DataSocket(server.accept()[0])

    class Handler:
        sock = near

        def on_ready(self, mask: int) -> None:
            raise WireError("called")

    handler = Handler()
    reactor.watch(handler, 1)
    far.send_nowait([b"x"])
    reactor.forget(handler)
    near.close()
    with trio.move_on_after(0.05):
        await reactor.run()
    far.close()
