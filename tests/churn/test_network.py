"""The network of a churn test: forwards everything, is honest about deaths, and can be cut."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from ringhaul.cli.churn.network import Door, read_first_frame
from ringhaul.limits import PROTOCOL_VERSION
from ringhaul.wire.codec import Envelope, decode, encode
from ringhaul.wire.framing import LENGTH_BYTES, frame
from ringhaul.wire.peer_messages import StreamHello
from ringhaul.wire.records import Address
from ringhaul.wire.session_messages import Hello

PATIENCE_S = 30.0


class Place:
    """Two listening ports, a coordinator's and a peer's, and a door between them."""

    def __init__(self, nursery: trio.Nursery, coordinator: trio.SocketListener) -> None:
        self.nursery = nursery
        self._coordinator = coordinator
        self.door = Door("c1", port_of(coordinator), nursery)
        self.control, self.data = "", ""
        self.peer: trio.SocketListener
        self._streams: list[trio.SocketStream] = []

    async def open(self) -> None:
        (self.peer,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.control, self.data = await self.door.open()

    async def connect(self, address: str) -> trio.SocketStream:
        host, _, port = address.rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        self._streams.append(stream)
        return stream

    async def accept(self, listener: trio.SocketListener) -> trio.SocketStream:
        stream = await listener.accept()
        self._streams.append(stream)
        return stream

    async def is_open(self) -> bool:
        """Does the door take connections to the peer?"""
        try:
            await self.connect(self.data)
        except OSError:
            return False
        return True

    def close(self) -> None:
        self.door.close()
        for listener in (self._coordinator, self.peer):
            listener.socket.close()
        for stream in self._streams:
            stream.socket.close()

    async def say_hello(self) -> tuple[trio.SocketStream, trio.SocketStream, Hello]:
        """The peer connects; its end, the coordinator's, and what the coordinator was told."""
        hello = Hello(
            version=PROTOCOL_VERSION,
            name="c1",
            group=0,
            addresses=(Address(*port_of(self.peer)),),
            min_world_size=1,
        )
        near = await self.connect(self.control)
        await near.send_all(frame(encode(Envelope(message=hello))))
        far = await self.accept(self._coordinator)
        told = decode((await read_first_frame(far))[LENGTH_BYTES:]).message
        assert isinstance(told, Hello)
        return near, far, told

    async def dial_peer(self, dialler: str) -> tuple[trio.SocketStream, trio.SocketStream]:
        """Another peer's stream: its end, and the peer's."""
        near = await self.connect(self.data)
        await near.send_all(stream_hello(dialler))
        far = await self.accept(self.peer)
        while not (first := await read_first_frame(far)):  # the door finds out who lives
            far = await self.accept(self.peer)
        assert first == stream_hello(dialler)
        return near, far


def stream_hello(dialler: str) -> bytes:
    message = StreamHello(
        version=PROTOCOL_VERSION,
        dialler=dialler,  # type: ignore[arg-type]
        acceptor="c1",  # type: ignore[arg-type]
        challenge=bytes(16),
        stream_index=0,
        stream_count=1,
        link_number=1,
    )
    return frame(encode(Envelope(message=message)))


def port_of(listener: trio.SocketListener) -> tuple[str, int]:
    host, port = listener.socket.getsockname()[:2]
    return host, port


async def is_reset(stream: trio.SocketStream) -> bool:
    try:
        return await stream.receive_some(1) == b""
    except trio.BrokenResourceError:
        return True


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            (coordinator,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            made = Place(nursery, coordinator)
            await made.open()
            try:
                yield made
            finally:
                made.close()
                nursery.cancel_scope.cancel()


async def test_the_coordinator_hears_of_the_doors_address_only() -> None:
    async with place() as made:
        _, _, told = await made.say_hello()

        assert [str(address) for address in told.addresses] == [made.data]


async def test_bytes_go_both_ways_and_an_end_is_passed_on() -> None:
    async with place() as made:
        await made.say_hello()
        near, far = await made.dial_peer("c2-abc")
        await near.send_all(b"there")
        assert await far.receive_some(10) == b"there"
        await far.send_all(b"back")
        assert await near.receive_some(10) == b"back"

        await far.aclose()

        assert await is_reset(near)


async def test_garbage_reaches_the_peer_as_it_is() -> None:
    async with place() as made:
        await made.say_hello()
        near = await made.connect(made.data)
        await near.send_all(b"\xff" * 100)
        far = await made.accept(made.peer)

        assert await far.receive_some(1000) == b"\xff" * 100


async def test_where_the_peer_refuses_the_door_refuses_too() -> None:
    async with place() as made:
        near, _, _ = await made.say_hello()
        await made.peer.aclose()  # as when its process dies
        await near.aclose()

        while await made.is_open():  # until the door has noticed
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("how", ["all", "one"])
async def test_cut_streams_are_reset_on_both_sides(how: str) -> None:
    async with place() as made:
        await made.say_hello()
        near, far = await made.dial_peer("c2-abc")

        assert await made.door.cut(how, 0.0) == 1

        assert await is_reset(near)
        assert await is_reset(far)


async def test_a_cut_control_connection_is_reset_on_both_sides() -> None:
    async with place() as made:
        near, far, _ = await made.say_hello()

        assert await made.door.cut("control", 0.0) == 1

        assert await is_reset(near)
        assert await is_reset(far)


async def test_what_is_paused_arrives_afterwards() -> None:
    async with place() as made:
        await made.say_hello()
        near, far = await made.dial_peer("c2-abc")
        made.nursery.start_soon(made.door.cut, "pause", 0.05)
        await trio.lowlevel.checkpoint()

        await near.send_all(b"late")

        assert await far.receive_some(10) == b"late"


async def test_a_blocked_pair_is_blocked_until_it_is_not_and_others_are_not() -> None:
    async with place() as made:
        await made.say_hello()
        near, _ = await made.dial_peer("c2-abc")
        made.nursery.start_soon(made.door.cut, "block", 1e9)
        assert await is_reset(near)

        again = await made.connect(made.data)
        await again.send_all(stream_hello("c2-abc"))
        assert await is_reset(again)

        other, far = await made.dial_peer("c3-abc")
        await other.send_all(b"here")
        assert await far.receive_some(10) == b"here"
