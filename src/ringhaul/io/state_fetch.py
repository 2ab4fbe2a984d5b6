"""Fetching the elected state: the blocks that differ, from all sources at once.

Executes a `FetchPlan`: dials holders and fellow requesters, asks each for what the plan says,
and verifies every block as it arrives, while it is in the cache. A source that breaks costs the
blocks under way on it.
"""

import logging
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import trio

from ringhaul import limits
from ringhaul.errors import WireError
from ringhaul.ids import PeerId
from ringhaul.io.dial import DialError, Reached, reach
from ringhaul.io.progress import Progress
from ringhaul.io.sockets import DataSocket, StreamEnded
from ringhaul.io.state_lane import Lane
from ringhaul.io.system import System
from ringhaul.state.content import HashedState, Stage
from ringhaul.state.digest import DIGEST_BYTES
from ringhaul.state.plan import FetchPlan
from ringhaul.wire.codec import Envelope
from ringhaul.wire.coordinator_messages import SyncPlan
from ringhaul.wire.peer_messages import StateOffer, StateRequest
from ringhaul.wire.records import Address, Ticket
from ringhaul.wire.state_records import RECORD_BYTES, Kind, StateRecord

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: An idle connection looks so often for something to ask.
_LOOK_S = 0.05
#: Before a source is dialled again; twice as long each time.
_REDIAL_S = 0.1
#: Records that may come before the list of digests is here.
_EARLY_RECORDS_MAX = 100_000
#: Reads on one connection, of a block at most each, before the others have their turn.
_READS_AT_ONCE = 4
#: More than this is verified in a thread of its own, while the next block is read.
_THREADED_BYTES_MIN = 8 << 20


class FetchError(Exception):
    """No source gave what is missing; says what happened at each."""


class BadSource(Exception):
    """A source gave what was not elected: it is not asked again."""


@dataclass(frozen=True, slots=True)
class Fetching:
    """Who fetches what, on behalf of which call."""

    plan: SyncPlan
    content: HashedState
    own: PeerId
    run_id: bytes
    dialable: Callable[[Ticket], list[Address]]
    system: System
    progress: Progress
    #: Called once it is known what differs, and whenever a block is here.
    on_stage: Callable[[Stage], None]
    on_arrived: Callable[[], None]


class Fetcher:
    """One requester's part of one attempt of a `sync_state`."""

    def __init__(self, fetching: Fetching, stage: Stage | None) -> None:
        """Prepare; `stage` is what an earlier attempt has brought of the same content."""
        self._f = fetching
        self._stage = stage
        self._plan: FetchPlan | None = None
        self._list_lock = trio.Lock()
        self._failures: dict[PeerId, str] = {}
        self._claims: dict[int, Lane] = {}
        self._holders_left = len(fetching.plan.holders)
        #: When a block was last brought.
        self._moved_at = 0.0
        self._everything = trio.CancelScope()
        self._verifier: Executor | None = None

    async def run(self) -> Stage:
        """Fetch until the stage is whole.

        Raises:
            FetchError: no source is left that could give what is missing.
        """
        self._moved_at = trio.current_time()
        if self._stage is not None:
            await self._begin(self._stage)
        try:
            await self._fetch()
        finally:
            if self._verifier is not None:
                self._verifier.shutdown()  # idle since the lanes ended
        if self._stage is not None and self._stage.is_whole:
            return self._stage
        failures = "; ".join(f"{peer}: {why}" for peer, why in self._failures.items())
        raise FetchError(failures or "no source was named")

    async def _fetch(self) -> None:
        if self._plan is None or not self._plan.is_done:
            with self._everything:
                async with trio.open_nursery() as nursery:
                    for ticket in self._f.plan.holders:
                        nursery.start_soon(self._follow, ticket, True, nursery)
                    for ticket in self._f.plan.fellows:
                        nursery.start_soon(self._follow, ticket, False, nursery)

    async def _begin(self, stage: Stage) -> None:
        """It is known what differs.

        The attempt may have ended before its task ran, or while a thread, which nobody can
        cancel, made the stage: nothing is served then, nor counted.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._stage = stage
        self._plan = FetchPlan(
            stage.missing,
            stage.layout.block_count,
            stage.layout.size,
            request_bytes=limits.STATE_REQUEST_BYTES,
            start_share=self._f.plan.place / max(1, self._f.plan.requester_count),
        )
        if stage.needed_bytes >= _THREADED_BYTES_MIN and (os.cpu_count() or 1) > 1:
            self._verifier = ThreadPoolExecutor(1, thread_name_prefix="ringhaul-verify")
        progress = self._f.progress
        progress.total_bytes = stage.needed_bytes
        progress.done_bytes = sum(map(stage.layout.size, stage.arrived))
        progress.block_count = len(stage.arrived)
        self._f.on_stage(stage)

    # -- connections --------------------------------------------------------------------------

    async def _follow(self, ticket: Ticket, is_holder: bool, nursery: trio.Nursery) -> None:
        """Ask one peer as long as it gives; dial again what breaks, a few times."""
        failures = 0
        is_first = True
        while failures < limits.STATE_DIALS_MAX:
            if failures:
                await trio.sleep(_REDIAL_S * 2 ** (failures - 1))
            failures += 1
            try:
                reached = await self._dial(ticket, self._f.dialable(ticket))
                if is_first and _is_long(reached.sock):
                    for _ in range(limits.STATE_STREAMS_LONG_PATH - 1):
                        nursery.start_soon(self._follow_once, ticket, reached.address, is_holder)
                is_first = False
                if await self._ask(reached, ticket, is_holder):
                    failures = 0
            except (DialError, StreamEnded) as error:
                self._failures[ticket.peer] = str(error)
            except BadSource as error:
                self._failures[ticket.peer] = str(error)
                logger.warning("state from %s: %s", ticket.peer, error)
                break
        if is_holder:
            self._holders_left -= 1

    async def _follow_once(self, ticket: Ticket, address: Address, is_holder: bool) -> None:
        """One more connection on a long path; if it breaks, the first one is enough."""
        try:
            await self._ask(await self._dial(ticket, [address]), ticket, is_holder)
        except (DialError, StreamEnded, BadSource) as error:
            logger.debug("a further connection to %s: %s", ticket.peer, error)

    async def _dial(self, ticket: Ticket, addresses: list[Address]) -> Reached:
        hello = StateRequest(
            version=limits.PROTOCOL_VERSION,
            requester=self._f.own,
            holder=ticket.peer,
            generation=self._f.plan.generation,
            key=self._f.plan.key,
            token=ticket.token,
        )
        # a holder may come to the call later than we do; a fellow has to get its list first
        envelope = Envelope(message=hello, run_id=self._f.run_id)
        return await reach(addresses, envelope, ticket.proof, limits.HANDSHAKE_S, self._f.system)

    async def _ask(self, reached: Reached, ticket: Ticket, is_holder: bool) -> bool:
        """Fetch from one connection until it ends; did it give anything?"""
        sock, offer = reached.sock, reached.answer
        by_source = self._f.progress.by_source
        before = by_source[ticket.peer]
        try:
            block_count = self._f.content.layout.block_count
            if not isinstance(offer, StateOffer) or offer.block_count != block_count:
                raise BadSource("offers a state of another size")
            sock.tune()
            early: list[StateRecord] = []
            if self._plan is None:
                async with self._list_lock:
                    if self._plan is None:
                        early = await self._fetch_list(sock)
            await self._fetch_blocks(sock, ticket.peer, is_holder, early)
        except StreamEnded as error:
            self._failures[ticket.peer] = str(error)
        finally:
            sock.close()
        return by_source[ticket.peer] > before

    async def _fetch_list(self, sock: DataSocket) -> list[StateRecord]:
        """Get the digests of all blocks, which prove themselves.

        Returns:
            What else the source has said meanwhile.
        """
        content = self._f.content
        await sock.send_all(StateRecord(Kind.WANT_LIST, 0, 0).encode())
        digests = bytearray()
        size = content.layout.block_count * DIGEST_BYTES
        early: list[StateRecord] = []
        while len(digests) < size:
            try:
                data = await _unless_silent(sock.receive_exactly(RECORD_BYTES))
                record = StateRecord.decode(data)
            except WireError as error:
                raise StreamEnded(str(error)) from None
            if record.kind is Kind.HAVE and len(early) < _EARLY_RECORDS_MAX:
                early.append(record)
                continue
            is_next = record.kind is Kind.LIST and record.index == len(digests)
            if not is_next or not 0 < record.count <= size - len(digests):
                raise StreamEnded(f"{record.kind.name} instead of the list of digests")
            digests += await _unless_silent(sock.receive_exactly(record.count))
        try:
            stage = await sock.system.run_in_thread(
                Stage, content, bytes(digests), self._f.plan.digest
            )
        except ValueError as error:
            raise BadSource(str(error)) from None
        await self._begin(stage)
        return early

    # -- blocks -------------------------------------------------------------------------------

    async def _fetch_blocks(
        self, sock: DataSocket, peer: PeerId, is_holder: bool, early: list[StateRecord]
    ) -> None:
        assert self._plan is not None
        assert self._stage is not None

        def on_block(
            lane: Lane, index: int, block: memoryview | None, size: int, is_good: bool | None
        ) -> None:
            self._take(lane, index, block, peer, size, is_good)

        lane = Lane(
            sock,
            self._plan,
            self._stage,
            is_holder=is_holder,
            claims=self._claims,
            on_block=on_block,
            verifier=self._verifier,
            clock=self._f.system.clock,
        )
        try:
            for record in early:
                lane.take(record)
            await self._run_lane(sock, lane)
        finally:
            lane.end()

    async def _run_lane(self, sock: DataSocket, lane: Lane) -> None:
        """Ask and read; too little for too long ends it."""
        assert self._plan is not None
        judged_at = trio.current_time() + limits.STATE_SILENCE_S
        while not self._plan.is_done:
            requests = lane.ask()
            if requests:
                await _unless_silent(sock.send_all(requests))
            reads = 0
            while reads < _READS_AT_ONCE and lane.read_nowait():
                reads += 1
            lane.settle()
            if reads:
                await trio.lowlevel.checkpoint()
            else:
                patience_s = limits.STATE_SILENCE_S if lane.is_waiting else _LOOK_S
                with trio.move_on_after(patience_s):
                    await lane.wait()
            now = trio.current_time()
            if not lane.is_waiting:
                judged_at = now + limits.STATE_SILENCE_S
                self._check_starved(now)
            elif now >= judged_at:
                if lane.read_bytes < limits.LINK_RATE_MIN * limits.STATE_SILENCE_S:
                    raise StreamEnded(
                        f"sent {lane.read_bytes} bytes within {limits.STATE_SILENCE_S:g} s"
                    )
                lane.read_bytes = 0
                judged_at = now + limits.STATE_SILENCE_S

    def _check_starved(self, now: float) -> None:
        """Nothing can be asked: without holders that does not go on for ever."""
        if self._holders_left == 0 and now - self._moved_at > limits.STATE_STARVED_S:
            raise StreamEnded("no holder is left, and fellow requesters lack the same blocks")

    def _take(
        self,
        lane: Lane,
        index: int,
        block: memoryview | None,
        peer: PeerId,
        size: int,
        is_good: bool | None,
    ) -> None:
        """A block has arrived; None: in its slot of the stage.

        Raises:
            BadSource: it is not what was elected.
        """
        assert self._plan is not None
        assert self._stage is not None
        progress = self._f.progress
        progress.received_bytes += size
        progress.by_source[peer] += size
        is_new = not self._stage.is_here(index)
        if not is_new:
            is_good = True
        elif is_good is None:
            is_good = self._stage.accept(index, block)
        elif is_good:
            self._stage.keep(index)
        self._plan.on_block(lane.source, index, lane.now(), is_good=is_good)
        if not is_good:
            raise BadSource(f"block {index} is not the elected one")
        if is_new:
            self._moved_at = trio.current_time()
            progress.done_bytes += self._stage.layout.size(index)
            progress.block_count += 1
            self._f.on_arrived()
        if self._plan.is_done:
            self._everything.cancel()


def _is_long(sock: DataSocket) -> bool:
    info = sock.tcp_info()
    return info is not None and info.round_trip_s > limits.LONG_ROUND_TRIP_S


async def _unless_silent(act: Awaitable[T]) -> T:
    """Do something that the other side has to go along with."""
    with trio.move_on_after(limits.STATE_SILENCE_S):
        return await act
    raise StreamEnded(f"silent for {limits.STATE_SILENCE_S:g} s")
