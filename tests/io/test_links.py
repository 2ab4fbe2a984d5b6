"""Links of several streams over loopback TCP: streams that end, and what they carried."""

import socket
from collections.abc import Iterator

import numpy as np
import pytest
import trio
import trio.lowlevel

from ringhaul import limits
from ringhaul.core.peer.steps import CallGivenUp
from ringhaul.ids import CallId, OpKey, Rank, ReduceOp
from ringhaul.io.coded_transfer import CodedTransfer
from ringhaul.io.transfer import Segment
from ringhaul.quant import SegmentCoder, find_codec
from ringhaul.testing.two_sides import (
    ELEMENTS,
    GENERATION,
    begin,
    reset,
    stream_pair,
    two_sides,
    values,
)
from ringhaul.wire.coordinator_messages import Outcome
from ringhaul.wire.records import CollectiveKind, Signature
from ringhaul.wire.segment_header import (
    PAYLOAD_BYTES_MAX,
    SegmentHeader,
    SegmentKind,
    unpack_header,
)


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


async def test_what_is_here_in_part_is_not_read_again_to_its_place() -> None:
    """A stream in the middle of a run when a segment of it arrives by itself on another."""
    async with two_sides(streams=1) as sides:
        (first,) = begin(sides[:1], ELEMENTS)  # type: ignore[arg-type]
        copies = [stream_pair() for _ in range(2)]
        for _, far in copies:
            sides[0].incoming.add(far)
        own = sides[1].transfer(values(1, ELEMENTS))
        own.allow_runs(limits.RUN_BYTES_MAX, 1)
        run = next(own.first_segments())
        header = unpack_header(run.header)
        size = own.plan.segment_elements * 8
        assert header.payload_bytes >= 2 * size
        copies[0][0].send_nowait([run.header, run.view[:100]])
        while not any(s.transfer is first for s in sides[0].incoming.streams):
            await trio.lowlevel.checkpoint()
        single = header._replace(segment=1, payload_bytes=size)
        rest = run.view[size : 2 * size]
        near = copies[1][0]
        await near.send_all(single.pack())
        await near.send_all(bytes(rest))
        while not first.received_bytes:
            await trio.lowlevel.checkpoint()

        assert all(s.transfer is None for s in sides[0].incoming.streams)
        for near, _ in copies:
            near.close()


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


async def test_a_copy_that_comes_after_its_operation_has_ended_is_not_kept() -> None:
    """What a slow stream held back was sent again on another, and is of no use any more."""
    async with two_sides(streams=1) as sides:
        transfers = list(begin(sides, ELEMENTS // 16))
        for side, transfer in zip(sides, transfers, strict=True):
            await side.is_done.wait()
            side.plane.release(transfer)
        late = next(sides[0].transfer(values(0, ELEMENTS // 16)).first_segments())
        near, far = stream_pair()
        sides[1].incoming.add(far)
        await near.send_all(late.header + bytes(late.view))
        while sides[1].incoming.streams[-1]._received_count == 0:
            await trio.lowlevel.checkpoint()
        near.close()

        assert sides[1].plane.early_bytes == 0
        assert not sides[1].plane._early


@pytest.mark.parametrize("ends_with", ["a grant", "a verdict"])
async def test_a_payload_half_read_counts_no_more_once_its_operation_is_granted_or_over(
    ends_with: str,
) -> None:
    """The sender has its budget back, and spends it on another stream."""
    async with two_sides(streams=0) as sides:
        link, plane = sides[1].incoming, sides[1].plane
        pairs = [stream_pair() for _ in range(4)]
        for _, far in pairs:
            link.add(far)
        heads = [
            SegmentHeader(SegmentKind.REDUCE_SCATTER, GENERATION, 0, n, 0, 0, 0, PAYLOAD_BYTES_MAX)
            for n in range(4)
        ]
        pairs[0][0].send_nowait([heads[0].pack(), bytes(100)])
        while plane.early_bytes != PAYLOAD_BYTES_MAX:
            await trio.lowlevel.checkpoint()
        if ends_with == "a grant":
            plane.begin(sides[1].transfer(values(1, ELEMENTS), 0))
        else:
            plane.forget(OpKey(None, 0))

        assert plane.early_bytes == 0
        link.streams[0].sock.close()  # what it counted for is not given back once more
        link.on_stream_ended(link.streams[0], "closed")
        for number in (1, 2, 3):
            pairs[number][0].send_nowait([heads[number].pack()])
        while not link.is_closed:  # by the third: the sender had budget for one and one more
            assert 0 <= plane.early_bytes <= 2 * limits.EAGER_BYTES_MAX
            await trio.lowlevel.checkpoint()
        for near, _ in pairs:
            near.close()


async def test_acknowledging_more_than_was_sent_breaks_the_link() -> None:
    async with two_sides(streams=1) as sides:
        liar = SegmentHeader(SegmentKind.ACK, 0, 0, 0, 0, 0, 7, 0)
        sides[1].incoming.streams[0].reply(liar.pack())
        while not sides[0].broken:
            await trio.lowlevel.checkpoint()

        assert "more was acknowledged" in sides[0].broken[0]


async def test_more_early_data_than_granted_breaks_the_link_when_its_generation_opens() -> None:
    """Each header that was held back is within the limit, all of them together are not."""
    async with two_sides(streams=0) as sides:
        link = sides[1].incoming
        header = SegmentHeader(
            SegmentKind.REDUCE_SCATTER, GENERATION + 1, 0, 0, 0, 0, 0, PAYLOAD_BYTES_MAX
        )
        pairs = [stream_pair() for _ in range(3)]
        for near, far in pairs:
            link.add(far)
            near.send_nowait([header.pack()])
        while not all(stream._is_paused for stream in link.streams):
            await trio.lowlevel.checkpoint()

        sides[1].plane.use_ring(GENERATION + 1)
        for near, _ in pairs:
            near.close()

        assert link.is_closed
        assert sides[1].plane.neighbours.incoming is None
        assert sides[1].plane.early_bytes == 0


async def test_replies_are_understood_wherever_they_are_cut() -> None:
    async with two_sides(streams=0) as sides:
        near, far = stream_pair()
        sides[0].outgoing.add(near)
        for ordinal in range(3):
            sides[0].plane.begin(sides[0].transfer(values(0, 1000), ordinal))
        (stream,) = sides[0].outgoing.streams
        assert len(stream.unacknowledged) == 3
        acks = b"".join(
            SegmentHeader(SegmentKind.ACK, 0, 0, 0, 0, 0, count, 0).pack() for count in (1, 2, 3)
        )
        for start, end, left in ((0, 1, 3), (1, 39, 3), (39, 41, 2), (41, 119, 1), (119, 120, 0)):
            await far.send_all(acks[start:end])
            while len(stream.unacknowledged) > left:
                await trio.lowlevel.checkpoint()
            assert len(stream.unacknowledged) == left
        far.close()

        assert sides[0].broken == []


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


@pytest.mark.parametrize("part", ["first_segments", "accept"])
async def test_a_transfer_that_finds_no_memory_is_given_up(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What streams do when they are free or have data must not end the loop they run in."""

    def fail(*_: object) -> Iterator[Segment]:
        raise MemoryError("no room")

    async with two_sides(streams=1) as sides:
        transfer = sides[0].transfer(values(0, 1000))
        monkeypatch.setattr(transfer, part, fail)
        sides[0].plane.begin(transfer)
        (_,) = begin(sides[1:], 1000)  # type: ignore[arg-type]
        while not sides[0].reports:
            await trio.lowlevel.checkpoint()

        given_up = sides[0].reports[0]
        assert isinstance(given_up, CallGivenUp)
        assert given_up.outcome is Outcome.FAILED
        assert "out of memory (no room)" in given_up.detail


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
