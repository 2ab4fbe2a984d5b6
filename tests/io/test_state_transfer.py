"""A transfer's two ends over a pair of sockets, one of them sound, the other not."""

import socket
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

import numpy as np
import pytest
import trio
import trio.lowlevel

from ringhaul.ids import Generation, OpKey, PeerId
from ringhaul.io.sockets import DataSocket, StreamEnded
from ringhaul.io.state_lane import Lane
from ringhaul.io.state_serve import Pacer, StateServer
from ringhaul.limits import STATE_BLOCK_BYTES, STATE_REQUEST_BYTES, STATE_WINDOW_BLOCKS_MAX
from ringhaul.quant.compression import Compressor
from ringhaul.state.content import HashedState, Stage, own_stage
from ringhaul.state.plan import FetchPlan
from ringhaul.wire.coordinator_messages import SyncPlan
from ringhaul.wire.peer_messages import StateOffer, StateRequest
from ringhaul.wire.records import Ticket
from ringhaul.wire.state_records import Kind, Packing, StateRecord

T = TypeVar("T")
Pair = tuple[DataSocket, DataSocket]
KEY = OpKey(None, 0)


def content(value: int) -> HashedState:
    return HashedState({"w": np.full(2 * STATE_BLOCK_BYTES // 4 + 3, value, np.float32)})


@pytest.fixture
def pair() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    ends = DataSocket(near), DataSocket(far)
    yield ends
    for end in ends:
        end.close()


def requesting(token: bytes) -> StateRequest:
    return StateRequest(
        version=1,
        requester=PeerId("r"),
        holder=PeerId("h"),
        generation=Generation(1),
        key=KEY,
        token=token,
    )


async def ask(server: StateServer, pair: Pair, records: bytes) -> str:
    """Have these bytes answered after the handshake; how does it end?"""
    near, far = pair
    request = requesting(b"t" * 16)
    served = await server.find(request)
    assert served is not None
    ends: list[str] = []

    async def answer() -> None:
        try:
            await server.answer(request, served, far)
        except StreamEnded as error:
            ends.append(str(error))
        far.close()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            offer = (await near.receive_message()).message
            assert isinstance(offer, StateOffer)
            await near.send_all(records)
            while not ends:
                await trio.lowlevel.checkpoint()
    return ends[0]


def serving(what: HashedState, stage: Stage | None = None) -> StateServer:
    server = StateServer()
    ticket = Ticket(PeerId("r"), (), b"t" * 16, b"p" * 16)
    plan = SyncPlan(
        generation=Generation(1),
        key=KEY,
        revision=0,
        digest=what.digest,
        holders=(),
        fellows=(),
        requesters=(ticket,),
    )
    server.serve(plan, stage or own_stage(what), None)
    return server


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        (b"\0" * 16, "state record"),
        (b"\xff" * 16, "state record"),
        (StateRecord(Kind.BLOCK, 0, 1).encode(), "sends BLOCK"),
        (StateRecord(Kind.WANT, 3, 1).encode(), "asks for blocks 3"),
        (StateRecord(Kind.WANT, 0, 4).encode(), "asks for blocks 0"),
        (StateRecord(Kind.WANT, 0, 0).encode(), "asks for blocks 0"),
        (StateRecord(Kind.WANT, 2**61, 1).encode(), "asks for blocks"),
        (StateRecord(Kind.WANT, 0, 3).encode() * 100, "asks for more than it takes"),
    ],
)
async def test_a_requester_that_breaks_the_rules_is_left(
    pair: Pair, records: bytes, reason: str
) -> None:
    assert reason in await ask(serving(content(1)), pair, records)


async def test_a_token_that_is_not_known_is_refused() -> None:
    assert await serving(content(1)).find(requesting(b"w" * 16)) is None


class Asking:
    """A lane that has asked for everything; the other end is the test's."""

    def __init__(self, pair: Pair, verifier: Executor | None = None) -> None:
        self.elected, mine = content(1), content(0)
        self.stage = Stage(mine, self.elected.block_digests, self.elected.digest)
        self.plan = FetchPlan(
            self.stage.needed,
            self.stage.layout.block_count,
            self.stage.layout.size,
            request_bytes=1,
        )
        self.arrived: list[tuple[int, bool]] = []
        near, self.far = pair
        self.lane = Lane(
            near,
            self.plan,
            self.stage,
            is_holder=True,
            claims={},
            on_block=self.take,
            verifier=verifier,
        )
        self.asked = self.lane.ask()

    def take(
        self, lane: Lane, index: int, block: memoryview | None, size: int, is_good: bool | None
    ) -> None:
        if is_good is None:
            is_good = self.stage.is_here(index) or self.stage.accept(index, block)
        elif is_good and not self.stage.is_here(index):
            self.stage.keep(index)
        self.plan.on_block(lane.source, index, 0.0, is_good=is_good)
        self.arrived.append((index, is_good))

    async def receive(self, data: bytes) -> None:
        """Everything that the other end sends."""
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.far.send_all, data)
                got = 0
                while got < len(data):
                    self.lane.read_bytes = 0
                    if not self.lane.read_nowait():
                        await self.lane.wait()
                    got += self.lane.read_bytes


async def test_blocks_that_were_asked_for_arrive_in_any_order(pair: Pair) -> None:
    asking = Asking(pair)
    blocks = [bytes(asking.elected.block(index)) for index in (1, 0)]

    heads = [StateRecord(Kind.BLOCK, index, STATE_BLOCK_BYTES).encode() for index in (1, 0)]
    await asking.receive(heads[0] + blocks[0] + heads[1] + blocks[1])

    assert asking.arrived == [(1, True), (0, True)]
    assert asking.stage.needed == [0, 1, 2]


async def test_a_compressed_block_is_unpacked(pair: Pair) -> None:
    asking = Asking(pair)
    packed = Compressor().shorter(np.frombuffer(asking.elected.block(0), np.uint8), 4)
    assert packed is not None
    assert len(packed) < STATE_BLOCK_BYTES / 10

    head = StateRecord(Kind.BLOCK, 0, len(packed), Packing.ZSTD).encode()
    await asking.receive(head + packed)

    assert asking.arrived == [(0, True)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0" * 16, "state record"),
        (StateRecord(Kind.WANT, 0, 1).encode(), "WANT was not asked for"),
        (StateRecord(Kind.LIST, 0, 1).encode(), "LIST was not asked for"),
        (StateRecord(Kind.BLOCK, 2, 12).encode(), "block 2 was not asked for"),
        (StateRecord(Kind.BLOCK, 2**61, 12).encode(), "was not asked for"),
        (StateRecord(Kind.BLOCK, 0, 12).encode(), "instead of"),
        (StateRecord(Kind.BLOCK, 0, 2**32 - 1, Packing.ZSTD).encode(), "instead of"),
        (StateRecord(Kind.BLOCK, 0, 9, Packing.ZSTD).encode() + b"garbage.\1", "zstandard"),
        (StateRecord(Kind.BLOCK, 0, 9, Packing.ZSTD).encode() + b"garbage.\7", "zstandard refuses"),
        (StateRecord(Kind.HAVE, 2, 2).encode(), "has blocks"),
        (StateRecord(Kind.HAVE, 2**61, 0).encode(), "has blocks"),
    ],
)
async def test_a_source_that_breaks_the_rules_is_left(pair: Pair, data: bytes, reason: str) -> None:
    asking = Asking(pair)

    with pytest.RaisesGroup(pytest.RaisesExc(StreamEnded, match=reason)):
        await asking.receive(data)


@pytest.mark.parametrize(("blocks_per_s", "at_once"), [(5.0, 1), (1000.0, 4)], ids=["slow", "fast"])
async def test_a_window_is_filled_again_by_blocks_on_a_slow_link_by_requests_on_a_fast_one(
    pair: Pair, blocks_per_s: float, at_once: int
) -> None:
    large = HashedState({"large": np.zeros(40 * STATE_BLOCK_BYTES, np.uint8)})
    elected = HashedState({"large": np.ones(40 * STATE_BLOCK_BYTES, np.uint8)})
    stage = Stage(large, elected.block_digests, elected.digest)
    count, size = stage.layout.block_count, stage.layout.size
    plan = FetchPlan(stage.needed, count, size, request_bytes=STATE_REQUEST_BYTES)
    now = [0.0]

    def take(
        lane: Lane, index: int, block: memoryview | None, size: int, is_good: bool | None
    ) -> None:
        plan.on_block(lane.source, index, now[0], is_good=True)

    lane = Lane(
        pair[0],
        plan,
        stage,
        is_holder=True,
        claims={},
        on_block=take,
        clock=lambda: now[0],
    )
    requests = [lane.ask()]
    for index in range(30):
        now[0] += 1 / blocks_per_s
        lane.take(StateRecord(Kind.BLOCK, index, STATE_BLOCK_BYTES))
        lane._on_payload(StateRecord(Kind.BLOCK, index, STATE_BLOCK_BYTES))
        requests.append(lane.ask())

    counts = [StateRecord.decode(data).count for data in requests[8:20] if data]
    assert set(counts) == {at_once}
    assert len(counts) == 12 // at_once


async def test_a_lane_that_ends_leaves_its_blocks_to_others(pair: Pair) -> None:
    asking = Asking(pair)
    assert asking.asked
    asking.lane.end()

    assert asking.plan.next_request(asking.plan.add_source(is_holder=True), 0.0) is not None


class ByHand(Executor):
    """A thread that works when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def submit(self, act: Callable[..., T], /, *args: object, **more: object) -> Future[T]:
        future: Future[T] = Future()
        self.jobs.append(lambda: future.set_result(act(*args, **more)))
        return future


@pytest.mark.parametrize("spoiled", [False, True])
async def test_a_block_counts_when_another_thread_has_verified_it(
    pair: Pair, spoiled: bool
) -> None:
    verifier = ByHand()
    asking = Asking(pair, verifier)
    block = bytearray(asking.elected.block(0))
    block[77] ^= spoiled
    await asking.receive(StateRecord(Kind.BLOCK, 0, STATE_BLOCK_BYTES).encode() + bytes(block))

    asking.lane.settle()  # others are under way: it does not wait
    assert asking.arrived == []
    assert not asking.stage.is_here(0)
    verifier.jobs[0]()
    asking.lane.settle()
    assert asking.arrived == [(0, not spoiled)]
    assert asking.stage.is_here(0) is not spoiled


async def test_nobody_writes_into_a_block_that_another_thread_looks_at(pair: Pair) -> None:
    """It would have verified what is not there any more."""
    verifier = ByHand()
    asking = Asking(pair, verifier)
    head = StateRecord(Kind.BLOCK, 0, STATE_BLOCK_BYTES).encode()
    await asking.receive(head + bytes(asking.elected.block(0)))

    with pytest.raises(StreamEnded, match="block 0 was not asked for"):
        asking.lane.take(StateRecord.decode(head))  # the same source, once more
    other = Lane(
        pair[1],
        asking.plan,
        asking.stage,
        is_holder=True,
        claims=asking.lane._claims,
        on_block=asking.take,
    )
    while not asking.plan.is_under_way(other.source, 0):
        assert asking.plan.next_request(other.source, 1e9) is not None
    other.take(StateRecord.decode(head))
    assert other._record is not None
    other._target(other._record)[:] = bytes(STATE_BLOCK_BYTES)
    verifier.jobs[0]()
    asking.lane.settle()
    assert asking.arrived == [(0, True)]
    assert bytes(asking.stage.block(0)) == bytes(asking.elected.block(0))


async def test_no_more_is_asked_for_than_another_thread_verifies(pair: Pair) -> None:
    asking = Asking(pair, ByHand())
    for index in range(2):
        head = StateRecord(Kind.BLOCK, index, STATE_BLOCK_BYTES).encode()
        await asking.receive(head + bytes(asking.elected.block(index)))
    two = list(asking.lane._verifying)
    asking.lane._verifying *= STATE_WINDOW_BLOCKS_MAX // 2

    assert asking.lane.ask() == b""
    asking.lane._verifying = deque(two)
    assert asking.lane.ask() == StateRecord(Kind.WANT, 2, 1).encode()


async def test_a_late_copy_of_a_block_does_not_spoil_the_one_that_is_here(pair: Pair) -> None:
    """One lane writes into the stage while another brings the same block, and goes on."""
    asking = Asking(pair)
    other = Lane(
        pair[1],  # nothing is read from it here
        asking.plan,
        asking.stage,
        is_holder=True,
        claims=asking.lane._claims,
        on_block=asking.take,
    )
    head = StateRecord(Kind.BLOCK, 0, STATE_BLOCK_BYTES).encode()
    await asking.receive(head + bytes(500_000))
    while not asking.plan.is_under_way(other.source, 0):  # what the first one has is overdue
        assert asking.plan.next_request(other.source, 1e9) is not None
    other.take(StateRecord(Kind.BLOCK, 0, STATE_BLOCK_BYTES))
    record = other._record
    assert record is not None
    other._target(record)[:STATE_BLOCK_BYTES] = asking.elected.block(0)
    other._on_payload(record)
    await asking.receive(b"x" * (STATE_BLOCK_BYTES - 500_000))

    assert bytes(asking.stage.block(0)) == bytes(asking.elected.block(0))


async def test_a_block_that_is_not_here_is_not_given(pair: Pair) -> None:
    mine, elected = content(0), content(1)
    stage = Stage(mine, elected.block_digests, elected.digest)
    assert stage.accept(1, elected.block(1))

    wanted = StateRecord(Kind.WANT, 0, 1).encode()
    assert "block 0, which is not here" in await ask(serving(mine, stage), pair, wanted)


async def test_what_was_given_counts_though_the_call_ends_with_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, (near, far) = serving(content(1)), pair
    served = server._served[1, KEY]
    send = far.send_nowait

    def end_with_a_block(views: list[memoryview]) -> int:
        sent = send(views)
        if len(views) == 2:
            server.end(served.plan)
        return sent

    monkeypatch.setattr(far, "send_nowait", end_with_a_block)
    await near.send_all(StateRecord(Kind.WANT, 2, 1).encode())
    with trio.fail_after(20):
        await server.answer(requesting(b"t" * 16), served, far)

    assert served.sent_bytes == served.stage.layout.size(2) == 12


async def test_an_upload_budget_spaces_what_leaves(autojump_clock: trio.testing.MockClock) -> None:
    pacer = Pacer(1e6)
    started_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(pacer.pay, 500_000)

    assert trio.current_time() - started_at == pytest.approx(4.5)
