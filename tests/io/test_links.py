"""Links of several streams over loopback TCP: streams that end or stall, and what they carried."""

import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import trio
import trio.lowlevel
from numpy.typing import NDArray

from ringhaul import limits
from ringhaul.core.peer.steps import CallGivenUp, LinkBroken, LinkUp, TransferDone
from ringhaul.ids import CallId, Generation, OpKey, PeerId, Rank, ReduceOp
from ringhaul.io.coded_transfer import CodedTransfer
from ringhaul.io.incoming import IncomingLink, IncomingStream
from ringhaul.io.outgoing import OutgoingLink
from ringhaul.io.plane import DataPlane
from ringhaul.io.ring_transfer import RingTransfer
from ringhaul.io.sockets import DataSocket
from ringhaul.quant import SegmentCoder, find_codec
from ringhaul.wire.records import CollectiveKind, Signature
from ringhaul.wire.segment_header import SegmentHeader, SegmentKind, unpack_header

GENERATION = Generation(1)
FAIL_AFTER_S = 20


class Side:
    """One of two ranks: its plane, its links, and what it reported."""

    def __init__(self, nursery: trio.Nursery, rank: int) -> None:
        self.rank = rank
        self.reports: list[LinkUp | LinkBroken | TransferDone | CallGivenUp] = []
        self.is_done = trio.Event()
        self.plane = DataPlane(
            nursery=nursery, report=self._report, streams=1, coordinator_host="127.0.0.1"
        )
        self.plane.generation = GENERATION
        self.lost: list[str] = []
        self.broken: list[str] = []
        self.is_troubled = trio.Event()

    def _report(self, event: LinkUp | LinkBroken | TransferDone | CallGivenUp) -> None:
        self.reports.append(event)
        if isinstance(event, TransferDone):
            self.is_done.set()

    # what an outgoing link tells its owner; dialling is not what is tested here
    def on_outgoing_broken(self, link: OutgoingLink, reason: str) -> None:
        link.close()
        self.broken.append(reason)
        self.is_troubled.set()

    def on_stream_lost(self, link: OutgoingLink, reason: str) -> None:
        self.lost.append(reason)
        self.is_troubled.set()

    def on_under_way(self) -> None:
        self.plane.on_under_way()

    @property
    def outgoing(self) -> OutgoingLink:
        assert self.plane.neighbours.outgoing is not None
        return self.plane.neighbours.outgoing

    @property
    def incoming(self) -> IncomingLink:
        assert self.plane.neighbours.incoming is not None
        return self.plane.neighbours.incoming

    def transfer(self, own: NDArray[Any], ordinal: int = 0) -> RingTransfer:
        signature = Signature(
            kind=CollectiveKind.ALL_REDUCE,
            op=ReduceOp.SUM,
            dtype=own.dtype.name,
            element_count=own.size,
        )
        return RingTransfer(
            call=CallId(1 + ordinal),
            key=OpKey(None, ordinal),
            generation=GENERATION,
            rank=Rank(self.rank),
            world_size=2,
            signature=signature,
            own=own,
            result=np.empty_like(own),
        )


def stream_pair() -> tuple[DataSocket, DataSocket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return DataSocket(near), DataSocket(far)


@asynccontextmanager
async def two_sides(streams: int, unread: int = 0) -> AsyncIterator[tuple[Side, Side]]:
    """Two ranks; of the streams from 0 to 1 the last `unread` lead nowhere."""
    with trio.fail_after(FAIL_AFTER_S):
        async with trio.open_nursery() as nursery:
            sides = Side(nursery, 0), Side(nursery, 1)
            nowhere = []
            for here, there in (sides, sides[::-1]):
                nursery.start_soon(here.plane.run)
                reactor, other = here.plane.reactor, there.plane.reactor
                here.plane.neighbours.outgoing = OutgoingLink(PeerId("b"), 1, reactor, here)
                there.plane.neighbours.incoming = IncomingLink(PeerId("a"), 1, other, there.plane)
                here.outgoing.use(GENERATION)
                for index in range(streams):
                    near, far = stream_pair()
                    here.outgoing.add(near)
                    if here.rank == 0 and index >= streams - unread:
                        nowhere.append(far)
                    else:
                        there.incoming.add(far)
            yield sides
            for side in sides:
                side.plane.close()
            for sock in nowhere:
                sock.close()
            nursery.cancel_scope.cancel()


def reset(stream: IncomingStream) -> None:
    """Reset a connection: what the kernel had received is lost."""
    stream.link.reactor.forget(stream)
    raw = socket.socket(fileno=stream.sock.fileno())
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.detach()
    stream.sock.close()
    stream.link.on_stream_ended(stream, "reset")


def values(rank: int, element_count: int) -> NDArray[np.int64]:
    return np.arange(element_count, dtype=np.int64) * (rank + 1)


def begin(sides: tuple[Side, Side], element_count: int) -> Iterator[RingTransfer]:
    for side in sides:
        transfer = side.transfer(values(side.rank, element_count))
        side.plane.begin(transfer)
        yield transfer


ELEMENTS = 2 << 20  # 16 MiB: over the eager limit


async def test_what_a_reset_stream_carried_is_sent_again() -> None:
    async with two_sides(streams=3) as sides:
        first, second = begin(sides, ELEMENTS)
        while second.received_bytes == 0:
            await trio.lowlevel.checkpoint()

        reset(sides[1].incoming.streams[0])
        for side in sides:
            await side.is_done.wait()

    np.testing.assert_array_equal(first.result, values(2, ELEMENTS))
    np.testing.assert_array_equal(second.result, values(2, ELEMENTS))
    assert len(sides[0].lost) == 1
    assert sides[0].broken == sides[1].broken == []


@pytest.mark.parametrize("rank", [0, 1])
async def test_two_of_three_streams_may_be_reset_one_after_the_other(rank: int) -> None:
    async with two_sides(streams=3) as sides:
        transfers = list(begin(sides, ELEMENTS))
        for part in (4, 2):
            while transfers[rank].received_bytes < 8 * ELEMENTS // part:
                await trio.lowlevel.checkpoint()
            reset(sides[rank].incoming.streams[-1])
        for side in sides:
            await side.is_done.wait()

    for transfer in transfers:
        np.testing.assert_array_equal(transfer.result, values(2, ELEMENTS))


async def test_a_grant_that_was_lost_with_its_stream_is_repeated() -> None:
    async with two_sides(streams=2) as sides:
        (first,) = begin(sides[:1], ELEMENTS)  # type: ignore[arg-type]
        while sides[1].plane.early_bytes < limits.EAGER_BYTES_MAX:
            await trio.lowlevel.checkpoint()
        doomed = sides[1].incoming.streams[0]
        doomed.sock.send_nowait = lambda buffers: sum(map(len, buffers))  # type: ignore[method-assign]
        (second,) = begin(sides[1:], ELEMENTS)  # type: ignore[arg-type]
        reset(doomed)
        for side in sides:
            await side.is_done.wait()

    np.testing.assert_array_equal(first.result, values(2, ELEMENTS))
    np.testing.assert_array_equal(second.result, values(2, ELEMENTS))


async def test_what_a_stalled_stream_holds_back_is_sent_on_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "RESEND_AFTER_S", 0.01)
    async with two_sides(streams=3, unread=1) as sides:
        first, second = begin(sides, ELEMENTS)
        for side in sides:
            await side.is_done.wait()
        stalled = sides[0].outgoing.streams[-1]

        assert stalled.is_slow

    np.testing.assert_array_equal(first.result, values(2, ELEMENTS))
    np.testing.assert_array_equal(second.result, values(2, ELEMENTS))


async def test_a_stream_that_delivers_nothing_for_long_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "RESEND_AFTER_S", 0.01)
    monkeypatch.setattr(limits, "LINK_STALLED_S", 1.0)
    async with two_sides(streams=2, unread=1) as sides:
        list(begin(sides, ELEMENTS))
        await sides[0].is_troubled.wait()

        assert sides[0].lost == ["stalled"]
        assert len(sides[0].outgoing.streams) == 1


async def test_a_link_on_which_nothing_moves_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINK_STALLED_S", 0.1)
    monkeypatch.setattr(limits, "RESEND_AFTER_S", FAIL_AFTER_S)  # no stream is judged alone
    async with two_sides(streams=2, unread=2) as sides:
        list(begin(sides, ELEMENTS))
        await sides[0].is_troubled.wait()

        assert "stalled" in sides[0].broken[0]


async def test_a_link_without_streams_is_broken() -> None:
    async with two_sides(streams=2) as sides:
        list(begin(sides, ELEMENTS))
        for stream in list(sides[1].incoming.streams):
            reset(stream)
        while not sides[0].broken:
            await trio.lowlevel.checkpoint()

        assert len(sides[0].lost) == 1


async def test_early_bytes_of_a_payload_that_is_cut_off_are_given_back() -> None:
    async with two_sides(streams=1) as sides:
        near, far = stream_pair()
        sides[1].incoming.add(far)
        header = SegmentHeader(SegmentKind.REDUCE_SCATTER, GENERATION, 0, 0, 0, 0, 0, 1000)
        near.send_nowait([header.pack(), bytes(500)])
        while sides[1].plane.early_bytes != 1000:
            await trio.lowlevel.checkpoint()
        reset(sides[1].incoming.streams[-1])
        near.close()

        assert sides[1].plane.early_bytes == 0


async def test_acknowledging_more_than_was_sent_breaks_the_link() -> None:
    async with two_sides(streams=1) as sides:
        liar = SegmentHeader(SegmentKind.ACK, 0, 0, 0, 0, 0, 7, 0)
        sides[1].incoming.streams[0].reply(liar.pack())
        while not sides[0].broken:
            await trio.lowlevel.checkpoint()

        assert "more was acknowledged" in sides[0].broken[0]


async def test_data_against_the_ring_breaks_the_link() -> None:
    async with two_sides(streams=1) as sides:
        data = SegmentHeader(SegmentKind.ALL_GATHER, 1, 0, 0, 0, 0, 7, 4)
        sides[1].incoming.streams[0].reply(data.pack())
        while not sides[0].broken:
            await trio.lowlevel.checkpoint()

        assert "against the direction" in sides[0].broken[0]


async def test_an_operation_that_was_begun_late_takes_what_came_early() -> None:
    async with two_sides(streams=2) as sides:
        (first,) = begin(sides[:1], ELEMENTS)  # type: ignore[arg-type]
        while sides[1].plane.early_bytes < limits.EAGER_BYTES_MAX:
            await trio.lowlevel.checkpoint()
        (second,) = begin(sides[1:], ELEMENTS)  # type: ignore[arg-type]
        for side in sides:
            await side.is_done.wait()

        assert sides[1].plane.early_bytes == 0

    np.testing.assert_array_equal(first.result, second.result)


async def test_a_released_transfer_leaves_no_stream_with_its_memory() -> None:
    async with two_sides(streams=1, unread=1) as sides:
        (stream,) = sides[0].outgoing.streams
        raw = socket.socket(fileno=stream.sock.fileno())
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        raw.detach()
        own = bytearray(8 * ELEMENTS)
        transfer = sides[0].transfer(np.frombuffer(own, np.int64))
        sides[0].plane.begin(transfer)
        assert stream.is_blocked  # in the middle of a segment
        sides[0].plane.release(transfer)
        del transfer

        own += b"not possible while anybody holds a view of it"


async def test_what_comes_twice_does_not_spoil_the_sum() -> None:
    """The second copy is in the middle of its payload when the first is reduced in place."""
    count = 1000
    async with two_sides(streams=1) as sides:
        (first,) = begin(sides[:1], count)  # type: ignore[arg-type]
        while sides[1].plane.early_bytes == 0:
            await trio.lowlevel.checkpoint()
        copies = [stream_pair() for _ in range(2)]
        for _, far in copies:
            sides[0].incoming.add(far)
        own = sides[1].transfer(values(1, count))
        (segment,) = own.first_segments()
        for near, _ in copies:
            near.send_nowait([segment.header, bytes(segment.view)[:100]])
        while sum(s.transfer is first for s in sides[0].incoming.streams) < 2:
            await trio.lowlevel.checkpoint()
        copies[0][0].send_nowait([segment.view[100:]])
        while not first.received_bytes:
            await trio.lowlevel.checkpoint()
        copies[1][0].send_nowait([segment.view[100:]])
        (second,) = begin(sides[1:], count)  # type: ignore[arg-type]
        for side in sides:
            await side.is_done.wait()
        late = sides[0].incoming.streams[-1]
        while late.header is not None:
            await trio.lowlevel.checkpoint()
        for near, _ in copies:
            near.close()

    np.testing.assert_array_equal(first.result, values(2, count))
    np.testing.assert_array_equal(second.result, values(2, count))


async def test_early_data_that_no_codec_wrote_break_the_link_and_nothing_else() -> None:
    signature = Signature(
        kind=CollectiveKind.ALL_REDUCE,
        op=ReduceOp.SUM,
        dtype="float32",
        element_count=2000,
        codec="uint8",
    )
    own = np.ones(2000, np.float32)
    async with two_sides(streams=1) as sides:
        coded = CodedTransfer(
            coder=SegmentCoder(find_codec("uint8"), ReduceOp.SUM, own.dtype, 2),
            call=CallId(1),
            key=OpKey(None, 0),
            generation=GENERATION,
            rank=Rank(0),
            world_size=2,
            signature=signature,
            own=own,
            result=np.empty_like(own),
        )
        (segment,) = coded.first_segments()
        good = unpack_header(segment.header)
        near, far = stream_pair()
        sides[0].incoming.add(far)
        link = sides[0].incoming
        near.send_nowait([good._replace(chunk=0).pack(), b"\xff" * good.payload_bytes])
        while sides[0].plane.early_bytes != good.payload_bytes:
            await trio.lowlevel.checkpoint()
        while link.streams[-1].header is not None:
            await trio.lowlevel.checkpoint()

        sides[0].plane.begin(coded)

        assert link.is_closed
        assert sides[0].plane.early_bytes == 0
        near.close()


async def test_data_of_a_generation_that_opens_late_do_not_make_a_link_stalled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "HOLD_INTERVAL_S", 0.0)
    monkeypatch.setattr(limits, "HOLD_VALID_S", FAIL_AFTER_S)
    async with two_sides(streams=2) as sides:
        sides[1].plane.generation = Generation(0)
        (first,) = begin(sides[:1], ELEMENTS)  # type: ignore[arg-type]
        while not any(s.is_held(time.perf_counter()) for s in sides[0].outgoing.streams):
            await trio.lowlevel.checkpoint()
        monkeypatch.setattr(limits, "LINK_STALLED_S", 0.1)
        await trio.sleep(3 * limits.LINK_STALLED_S)  # which would be far too long
        monkeypatch.setattr(limits, "LINK_STALLED_S", FAIL_AFTER_S)
        sides[1].plane.use_ring(GENERATION)
        list(begin(sides[1:], ELEMENTS))  # type: ignore[arg-type]
        for side in sides:
            await side.is_done.wait()

        assert sides[0].broken == sides[0].lost == []

    np.testing.assert_array_equal(first.result, values(2, ELEMENTS))


async def test_a_receiver_that_no_longer_says_that_it_waits_is_judged_as_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "LINK_STALLED_S", 0.1)
    monkeypatch.setattr(limits, "HOLD_INTERVAL_S", FAIL_AFTER_S)
    monkeypatch.setattr(limits, "HOLD_VALID_S", 0.05)
    async with two_sides(streams=1) as sides:
        sides[1].plane.generation = Generation(0)
        list(begin(sides[:1], ELEMENTS))  # type: ignore[arg-type]
        await sides[0].is_troubled.wait()

        assert "stalled" in sides[0].broken[0]
