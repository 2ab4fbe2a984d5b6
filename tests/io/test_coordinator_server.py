"""The coordinator over loopback TCP: what one connection does wrong stays with it."""

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import msgpack
import pytest
import trio

from ringhaul import limits
from ringhaul.core.coordinator import machine
from ringhaul.errors import InvariantError
from ringhaul.ids import Generation
from ringhaul.io import link
from ringhaul.io.address import parse_address
from ringhaul.io.coordinator_server import serve_coordinator
from ringhaul.io.link import MessageLink
from ringhaul.io.reactor import Reactor
from ringhaul.io.sockets import DataSocket
from ringhaul.limits import PROTOCOL_VERSION
from ringhaul.wire.codec import Envelope, decode, encode
from ringhaul.wire.coordinator_messages import LinkReady, Opened, Proposal
from ringhaul.wire.framing import FrameReader, frame
from ringhaul.wire.message import Message
from ringhaul.wire.records import Address
from ringhaul.wire.session_messages import Goodbye, Heartbeat, Hello, Leave, Refused, Welcome

M = TypeVar("M", bound=Message)

PATIENCE_S = 10.0


def hello(version: int = PROTOCOL_VERSION) -> Hello:
    return Hello(
        version=version,
        name="ada",
        group=0,
        addresses=(Address("127.0.0.1", 4000),),
        min_world_size=1,
    )


class Client:
    """A peer's end, spoken by hand."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._reader = FrameReader()
        self._frames: list[bytes] = []
        self._welcome: Envelope | None = None
        self._sent = 0
        self._received = 0

    async def send(self, message: Message, *, numbered: bool = True) -> None:
        self._sent += numbered
        head = self._welcome
        envelope = Envelope(
            message=message,
            run_id=head.run_id if head else bytes(16),
            incarnation=head.incarnation if head else 0,
            seq=self._sent if numbered else 0,
            ack=self._received,
        )
        await self.stream.send_all(frame(encode(envelope)))

    async def next_envelope(self) -> Envelope | None:
        """The next one that is no heartbeat; None at the end of the stream."""
        while True:
            while not self._frames:
                data = await self.stream.receive_some(65536)
                if not data:
                    return None
                self._frames += self._reader.feed(bytes(data))
            envelope = decode(self._frames.pop(0))
            self._received = max(self._received, envelope.seq)
            if not isinstance(envelope.message, Heartbeat):
                return envelope

    async def expect(self, kind: type[M]) -> M:
        envelope = await self.next_envelope()
        assert envelope is not None
        assert isinstance(envelope.message, kind)
        if isinstance(envelope.message, Welcome):
            self._welcome = envelope
        return envelope.message

    async def expect_refusal(self) -> str:
        """The reason, after which the other side has closed."""
        refused = await self.expect(Refused)
        assert await self.next_envelope() is None
        return refused.reason

    async def found_run(self) -> Generation:
        """Say hello and become the only member."""
        await self.send(hello(), numbered=False)
        await self.expect(Welcome)
        proposal = await self.expect(Proposal)
        await self.send(LinkReady(generation=proposal.generation))
        opened = await self.expect(Opened)
        assert opened.generation == proposal.generation
        assert len(opened.ring_order) == 1
        return opened.generation

    async def leave(self) -> None:
        """Say goodbye: shows that the session is as it was."""
        await self.send(Leave())
        await self.expect(Goodbye)
        assert await self.next_envelope() is None


class Coordinator:
    """A running coordinator, and connections to it that are closed with it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._clients: list[Client] = []

    async def dial(self) -> Client:
        client = Client(await trio.open_tcp_stream(*parse_address(self.address, 0)))
        self._clients.append(client)
        return client

    async def aclose(self) -> None:
        for client in self._clients:
            await trio.aclose_forcefully(client.stream)


@asynccontextmanager
async def running_coordinator(
    host: str = "127.0.0.1", *, handshake_s: float = PATIENCE_S
) -> AsyncIterator[Coordinator]:
    addresses, opened = [], trio.Event()

    def started(address: str) -> None:
        addresses.append(address)
        opened.set()

    async def serve() -> None:
        await serve_coordinator(host, 0, new=True, started=started, handshake_s=handshake_s)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await opened.wait()
            coordinator = Coordinator(addresses[0])
            try:
                yield coordinator
            finally:
                with trio.CancelScope(shield=True):
                    await coordinator.aclose()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("host", ["127.0.0.1", "", "0.0.0.0", "localhost"])
async def test_a_single_peer_says_hello_and_its_generation_opens(host: str) -> None:
    async with running_coordinator(host) as coordinator:
        client = await coordinator.dial()
        assert await client.found_run() == 1
        await client.leave()


async def test_a_host_that_cannot_be_is_not_listened_on() -> None:
    with pytest.raises(OSError, match="no host name"):
        await serve_coordinator("a..b", 0)


def envelope_with_version(version: int) -> bytes:
    return frame(encode(Envelope(message=hello(version))))


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", ["not a message", "frame of"]),
        (struct.pack("!I", limits.FRAME_BYTES_MAX + 1), ["not a message", "frame of"]),
        (frame(b"\xc1 garbage"), ["not a message", "msgpack"]),
        (frame(msgpack.packb([999, bytes(16), 0, 0, 0])), ["not a message", "999"]),
        (envelope_with_version(77), ["version 77", f"speaks {PROTOCOL_VERSION}"]),
        (frame(encode(Envelope(message=Leave()))), ["Leave before hello"]),
    ],
    ids=["http", "oversized", "garbage", "unknown kind", "unknown version", "before hello"],
)
async def test_what_is_no_opening_closes_that_connection_with_a_reason_and_no_other(
    sent: bytes, words: list[str]
) -> None:
    async with running_coordinator() as coordinator:
        bystander = await coordinator.dial()
        await bystander.found_run()
        stranger = await coordinator.dial()
        await stranger.stream.send_all(sent)
        reason = await stranger.expect_refusal()
        assert all(word in reason for word in words), reason
        await bystander.leave()


async def test_who_does_not_say_hello_in_time_is_closed_with_a_reason_and_no_other() -> None:
    async with running_coordinator(handshake_s=0.05) as coordinator:
        bystander = await coordinator.dial()
        await bystander.found_run()
        stranger = await coordinator.dial()
        await stranger.stream.send_all(b"\x00\x00")  # a frame that never goes on
        assert "within 0.05 s" in await stranger.expect_refusal()
        await bystander.leave()


async def test_garbage_within_a_session_closes_the_connection_with_a_reason() -> None:
    async with running_coordinator() as coordinator:
        client = await coordinator.dial()
        await client.found_run()
        await client.stream.send_all(frame(b"\xc1"))
        assert "not a message" in await client.expect_refusal()


async def test_a_crowd_of_silent_connections_keeps_no_honest_peer_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "UNPROVED_CONNECTIONS_MAX", 2)
    async with running_coordinator() as coordinator:
        member = await coordinator.dial()
        await member.found_run()
        silent = [await coordinator.dial() for _ in range(4)]
        honest = await coordinator.dial()
        await honest.send(hello(), numbered=False)
        await honest.expect(Welcome)
        for stranger in silent[:3]:
            assert await stranger.next_envelope() is None
        await silent[3].send(hello(), numbered=False)
        await silent[3].expect(Welcome)
        await member.leave()


async def test_a_broken_invariant_ends_the_coordinator_and_is_logged_with_its_story(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise InvariantError("two and two are five", ["t=1 a step"])

    monkeypatch.setattr(machine.Coordinator, "step", fail)
    with trio.fail_after(PATIENCE_S), pytest.raises(InvariantError, match="five"):
        await serve_coordinator("127.0.0.1", 0, new=True)
    assert "t=1 a step" in caplog.text


# -- the link ---------------------------------------------------------------------------------


@asynccontextmanager
async def connected_sockets() -> AsyncIterator[tuple[DataSocket, DataSocket]]:
    """Two ends of one TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = DataSocket(socket.create_connection(server.getsockname()))
        far = DataSocket(server.accept()[0])
    try:
        with trio.fail_after(PATIENCE_S):
            yield near, far
    finally:
        near.close()
        far.close()


@asynccontextmanager
async def running_reactor() -> AsyncIterator[Reactor]:
    """What calls the links."""
    reactor = Reactor()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reactor.run)
        yield reactor
        nursery.cancel_scope.cancel()


def ignore(envelope: Envelope) -> None:
    """For who only sends."""


async def run_into(
    reasons: dict[str, str], name: str, run: MessageLink, handle: Callable[[Envelope], None]
) -> None:
    reasons[name] = await run.run(handle)


async def test_what_was_sent_before_a_close_arrives_in_order_and_nothing_after() -> None:
    pings: list[int] = []

    def note(envelope: Envelope) -> None:
        assert isinstance(envelope.message, Heartbeat)
        pings.append(envelope.message.ping)

    reasons: dict[str, str] = {}
    async with connected_sockets() as (near_sock, far_sock), running_reactor() as reactor:
        near, far = MessageLink(near_sock, reactor), MessageLink(far_sock, reactor)
        for ping in range(1000):
            near.send_nowait(Envelope(message=Heartbeat(ping=ping)))
        near.close_nowait("enough")
        near.close_nowait("a later reason")
        near.send_nowait(Envelope(message=Heartbeat(ping=9999)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_into, reasons, "near", near, ignore)
            nursery.start_soon(run_into, reasons, "far", far, note)
    assert pings == list(range(1000))
    assert reasons == {"near": "enough", "far": "closed by the other side"}


async def test_a_link_ends_when_the_other_side_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "SEND_BUFFER_BYTES_MAX", 1000)
    async with connected_sockets() as (near_sock, _), running_reactor() as reactor:
        near = MessageLink(near_sock, reactor)
        for _ in range(20_000):  # more than the kernel's buffers take
            near.send_nowait(Envelope(message=Refused(reason="x" * 1000)))
        assert "does not read" in await near.run(ignore)


async def test_a_link_says_that_it_was_reset() -> None:
    async with connected_sockets() as (near_sock, far_sock), running_reactor() as reactor:
        far = socket.socket(fileno=far_sock.fileno())
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.detach()
        far_sock.close()  # with a reset
        assert (await MessageLink(near_sock, reactor).run(ignore)).startswith("reset: ")


# -- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("trainer.example", ("trainer.example", 7)),
        ("[::1]:0", ("::1", 0)),
        ("[::1]", ("::1", 7)),
        (":80", ("", 80)),
    ],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text, 7) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "::1", "::1:80", "a:", "a:b", "a:65536", "a:-1", "a:²", "[::1", "[a]:1", "[::1]1"),
        *("x" * 256, "\ud800", "\ud800:80"),
    ],
    ids=lambda text: ascii(text[:9]),
)
def test_what_is_no_address_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        parse_address(text, 7)
