"""An attempt of a `sync_state` that ends: nothing of it is served, counted or sent any more."""

import contextlib
import socket
from collections.abc import AsyncIterator

import numpy as np
import pytest
import trio
import trio.from_thread
import trio.lowlevel

from ringhaul.core.peer.steps import Event
from ringhaul.ids import Generation, OpKey, PeerId
from ringhaul.io import state_fetch
from ringhaul.io.calls import SyncCall
from ringhaul.io.neighbours import Neighbours
from ringhaul.io.sockets import StreamEnded, accept
from ringhaul.io.state_serve import StateServer
from ringhaul.io.sync_runner import SyncRunner
from ringhaul.io.system import REAL
from ringhaul.limits import STATE_BLOCK_BYTES
from ringhaul.state.content import Stage, own_stage
from ringhaul.state.shared import SharedState
from ringhaul.testing.two_sides import stream_pair, two_sides
from ringhaul.wire.coordinator_messages import SyncPlan
from ringhaul.wire.peer_messages import StateRequest
from ringhaul.wire.records import (
    Address,
    CollectiveKind,
    Signature,
    StateReport,
    Strategy,
    Ticket,
)
from ringhaul.wire.state_records import Kind, StateRecord

KEY = OpKey(None, 0)
TOKEN, PROOF = b"t" * 16, b"p" * 16


def state(value: int) -> SharedState:
    return SharedState({"w": np.full(2 * STATE_BLOCK_BYTES, value, np.uint8)})


def call_with(mine: SharedState) -> SyncCall:
    content = mine.content()
    return SyncCall(
        signature=Signature(kind=CollectiveKind.SYNC_STATE),
        state=mine,
        report=StateReport(revision=0, digest=content.digest, strategy=Strategy.POPULAR),
        content=content,
    )


def plan_for(elected: SharedState, address: Address) -> SyncPlan:
    """One requester, which fellows may ask too."""
    return SyncPlan(
        generation=Generation(1),
        key=KEY,
        revision=0,
        digest=elected.content().digest,
        holders=(Ticket(PeerId("h"), (address,), TOKEN, PROOF),),
        fellows=(),
        requesters=(Ticket(PeerId("r"), (), TOKEN, PROOF),),
    )


@contextlib.asynccontextmanager
async def holder_of(elected: SharedState) -> AsyncIterator[tuple[SyncPlan, Neighbours]]:
    """A holder that answers one requester; the plan, and what the requester dials with."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        plan = plan_for(elected, Address(*listening.getsockname()[:2]))
        server = StateServer()
        served = server.serve(plan, own_stage(elected.content()), None)

        async def answer() -> None:
            sock = await accept(listening, REAL)
            with contextlib.closing(sock), contextlib.suppress(StreamEnded):
                request = (await sock.receive_message()).message
                assert isinstance(request, StateRequest)
                await server.answer(request, served, sock)

        async with two_sides(streams=0) as (side, _), trio.open_nursery() as nursery:
            side.plane.neighbours.peer_id = PeerId("r")
            nursery.start_soon(answer)
            yield plan, side.plane.neighbours
            nursery.cancel_scope.cancel()


async def test_a_call_that_ends_when_its_stream_is_free_again_sends_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both in one tick of the loop: the task has been woken, and runs after the end."""
    near, far = stream_pair()
    elected, server = state(1), StateServer()
    plan = plan_for(elected, Address("127.0.0.1", 1))
    served = server.serve(plan, own_stage(elected.content()), None)
    request = StateRequest(
        version=1,
        requester=PeerId("r"),
        holder=PeerId("h"),
        generation=Generation(1),
        key=KEY,
        token=TOKEN,
    )
    send, tried = far.send_nowait, [0]

    def send_or_block(views: list[memoryview]) -> int:
        is_block = len(views) == 2
        tried[0] += is_block
        return 0 if is_block and tried[0] == 1 else send(views)

    async def wake_after_the_end() -> None:
        server.end(plan)

    monkeypatch.setattr(far, "send_nowait", send_or_block)
    monkeypatch.setattr(far, "wait_writable", wake_after_the_end)
    await near.send_all(StateRecord(Kind.WANT, 0, 1).encode())
    with trio.fail_after(20):
        await server.answer(request, served, far)
    for sock in (near, far):
        sock.close()

    assert tried == [1]
    assert served.sent_bytes == 0


async def test_an_attempt_that_ends_before_its_task_runs_serves_nothing() -> None:
    elected, mine = state(1), state(0)
    call, states = call_with(mine), StateServer()
    content = elected.content()
    call.stage = Stage(call.content, content.block_digests, content.digest)  # an earlier one's
    events: list[Event] = []
    async with holder_of(elected) as (plan, neighbours), trio.open_nursery() as nursery:
        runner = SyncRunner(nursery, neighbours, states, events.append)
        runner.follow(call, plan)
        runner.release(call)

    assert states._served == {}
    assert call.served is None
    assert events == []


async def test_an_attempt_that_ends_while_a_thread_makes_its_stage_serves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elected = state(1)
    call, states = call_with(state(0)), StateServer()
    events: list[Event] = []
    made: list[Stage] = []
    async with holder_of(elected) as (plan, neighbours), trio.open_nursery() as nursery:
        runner = SyncRunner(nursery, neighbours, states, events.append)

        def make_stage(*args: bytes) -> Stage:
            trio.from_thread.run_sync(runner.release, call)
            made.append(Stage(call.content, *args[1:]))
            return made[-1]

        monkeypatch.setattr(state_fetch, "Stage", make_stage)
        runner.follow(call, plan)

    assert made
    assert states._served == {}
    assert call.served is None
    assert call.stage is None
    assert call.progress.total_bytes == 0  # a later attempt may be counting by now
    assert events == []
