"""Simulated fetching of a shared state: real stages and plans, blocks over links that fail.

Every block takes a while, from several sources at once; sources die, stop, are cut off, or give
wrong bytes. Whoever has the elected state ends with exactly that; whoever has not is untouched.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ringhaul.core.peer.steps import CallGivenUp, FollowSyncPlan, TransferDone
from ringhaul.ids import CallId
from ringhaul.state.content import HashedState, Stage, own_stage
from ringhaul.state.plan import FetchPlan
from ringhaul.testing.ledger import OracleError
from ringhaul.wire.coordinator_messages import Outcome, SyncPlan
from ringhaul.wire.records import Ticket

if TYPE_CHECKING:
    from ringhaul.testing.process import Process
    from ringhaul.testing.simulator import World

#: A content: one number an array, and one block an array.
Cells = tuple[int, ...]
CELL_COUNT = 8
_WINDOW = 2
_DIALS_MAX = 6
_LOOK_S = 0.1


def first_cells(index: int) -> Cells:
    """What process number `index` begins with; half of it is the same for all."""
    return tuple(index * CELL_COUNT + i if i % 2 else i for i in range(CELL_COUNT))


def next_cells(cells: Cells, revision: int) -> Cells:
    """What all members make of a content alike: some of its cells change."""
    dice = hashlib.blake2b(b"%d" % revision, digest_size=CELL_COUNT).digest()
    return tuple(
        (cell * 31 + revision) % 2**31 if byte % 2 else cell
        for cell, byte in zip(cells, dice, strict=True)
    )


def hashed(cells: Cells) -> HashedState:
    """The arrays of a content, and their digests."""
    arrays: dict[str, NDArray[Any]] = {f"{i}": np.array(cell) for i, cell in enumerate(cells)}
    return HashedState(arrays)


def cells_of(state: HashedState) -> Cells:
    """What the arrays hold now."""
    return tuple(int(np.frombuffer(view, np.int64)[0]) for view in state.views)


@dataclass(eq=False)
class _Sync:
    """One process's `sync_state` call."""

    process: Process
    call: CallId
    state: HashedState
    before: Cells
    plan: SyncPlan | None = None
    stage: Stage | None = None
    fetch: FetchPlan | None = None
    #: Sources of this attempt: their number in the plan, and who they are.
    sources: dict[int, _Sync] = field(default_factory=dict)
    #: Tickets that are still followed.
    followed: int = 0

    @property
    def is_open(self) -> bool:
        """Does the attempt still run?"""
        return self.process.is_alive and self.plan is not None


class StatePlane:
    """All `sync_state` calls of a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._syncs: dict[tuple[int, CallId], _Sync] = {}

    def begin(self, process: Process, call: CallId, cells: Cells) -> None:
        """A process's caller is in a sync with this content."""
        self._syncs[process.index, call] = _Sync(process, call, hashed(cells), cells)

    def follow(self, process: Process, effect: FollowSyncPlan) -> None:
        """Serve the elected state, or fetch it."""
        sync = self._syncs[process.index, effect.call]
        plan = sync.plan = effect.plan
        if sync.stage is not None and sync.stage.digest != plan.digest:
            sync.stage = None
        if plan.holders:
            if sync.stage is not None:
                self._world.ledger.seen["state fetch resumed"] += 1
                self._plan_fetch(sync, sync.stage)
            tickets = [(t, True) for t in plan.holders] + [(t, False) for t in plan.fellows]
            sync.followed = len(tickets)
            for ticket, is_holder in tickets:
                self._after(lambda t=ticket, h=is_holder: self._dial(sync, plan, t, h, 0))
            return
        if sync.stage is None:
            sync.stage = own_stage(sync.state)
        if sync.stage.digest != plan.digest or not sync.stage.is_whole:
            raise OracleError(f"{process.name} was taken for a holder of {plan.digest.hex()}")
        process.deliver(TransferDone(effect.call, plan.generation, plan.digest))

    def drop(self, process: Process, call: CallId) -> None:
        """An attempt ended; what was fetched is kept."""
        sync = self._syncs.get((process.index, call))
        if sync is not None:
            sync.plan = sync.fetch = None
            sync.sources.clear()

    def end(self, process: Process, call: CallId, *, is_committed: bool) -> tuple[bytes, Cells]:
        """A call ended: publish what was elected, or see that nothing has changed.

        Returns:
            Digest and cells of what the process holds now.
        """
        sync = self._syncs.pop((process.index, call))
        if cells_of(sync.state) != sync.before:
            raise OracleError(f"{process.name}: its arrays changed before the verdict")
        if is_committed:
            if sync.stage is None or not sync.stage.is_whole:
                raise OracleError(f"{process.name}: committed without the elected state")
            digest = sync.stage.digest
            sync.stage.publish()
            if hashed(cells_of(sync.state)).digest != digest:
                raise OracleError(f"{process.name}: published another content")
            return digest, cells_of(sync.state)
        return sync.state.digest, sync.before

    # -- fetching -----------------------------------------------------------------------------

    def _after(self, act: Any, low_s: float = 0.001, high_s: float = 0.05) -> None:  # noqa: ANN401
        self._world.agenda.after(self._world.agenda.between(low_s, high_s), act)

    def _plan_fetch(self, sync: _Sync, stage: Stage) -> None:
        assert sync.plan is not None
        sync.stage = stage
        sync.fetch = FetchPlan(
            stage.missing,
            stage.layout.block_count,
            stage.layout.size,
            request_bytes=1,
            start_share=sync.plan.place / sync.plan.requester_count,
        )

    def _dial(
        self, sync: _Sync, plan: SyncPlan, ticket: Ticket, is_holder: bool, dials: int
    ) -> None:
        """Connect to a source, if it lives, runs and serves; else try again, a few times."""
        is_whole = sync.stage is not None and sync.stage.is_whole
        if not sync.is_open or sync.plan is not plan or is_whole:
            return
        if sync.process.is_paused:
            self._after(lambda: self._dial(sync, plan, ticket, is_holder, dials), 0.1, 0.3)
            return
        if dials == _DIALS_MAX:
            sync.followed -= 1
            if not sync.followed:
                detail = "no source gave the state, none could be reached"
                sync.process.deliver(CallGivenUp(sync.call, Outcome.NO_STATE, detail))
            return
        source = self._find(sync, plan, ticket)
        if source is None or source.stage is None:
            pause_s = 0.1 * 2**dials
            self._after(
                lambda: self._dial(sync, plan, ticket, is_holder, dials + 1), pause_s, 2 * pause_s
            )
            return
        if sync.fetch is None:
            digests = source.stage.elected_digests
            self._plan_fetch(sync, Stage(sync.state, digests, plan.digest))
        fetch = sync.fetch
        assert fetch is not None
        number = fetch.add_source(is_holder=is_holder)
        sync.sources[number] = source
        link = _Link(sync, plan, fetch, source, number, ticket, is_holder)
        self._announce(link, source, [i for i in range(CELL_COUNT) if source.stage.is_here(i)])
        self._ask(link)

    def _find(self, sync: _Sync, plan: SyncPlan, ticket: Ticket) -> _Sync | None:
        """The other's part of this sync, if it answers with the right proof."""
        process = self._world.by_id[ticket.peer]
        is_cut = self._world.is_faulty and (sync.process, process) in self._world.data.cut
        if not process.is_alive or process.is_paused or is_cut:
            return None
        for other in self._syncs.values():
            if other.process is not process or other.plan is None:
                continue
            if (other.plan.generation, other.plan.key) == (plan.generation, plan.key):
                tokens = [(t.peer, t.token, t.proof) for t in other.plan.requesters]
                if (sync.process.peer_id, ticket.token, ticket.proof) not in tokens:
                    raise OracleError(f"{process.name} does not know {sync.process.name}")
                return other
        return None

    def _announce(self, link: _Link, source: _Sync, indices: list[int]) -> None:
        def arrive() -> None:
            if link.is_up():
                for index in indices:
                    link.fetch.on_have(link.number, index, 1)

        if indices:
            self._after(arrive)

    def _ask(self, link: _Link) -> None:
        """Ask for the next blocks; look again later."""
        if not link.is_up() or link.fetch.is_done:
            return
        if not self._is_serving(link):
            self._lose(link)
            return
        agenda = self._world.agenda
        while link.under_way < _WINDOW:
            request = link.fetch.next_request(link.number, agenda.now)
            if request is None:
                break
            for index in range(request.first, request.first + request.count):
                link.under_way += 1
                slow_s = 0.7 if agenda.chance(0.05) else 0.06
                self._after(lambda i=index: self._arrive(link, i), 0.002, slow_s)
        self._after(lambda: self._ask(link), _LOOK_S, 2 * _LOOK_S)

    def _is_serving(self, link: _Link) -> bool:
        source, plan = link.source, link.plan
        return (
            source.is_open
            and source.plan is not None
            and source.plan.generation == plan.generation
            and not (self._world.is_faulty and self._world.agenda.chance(0.01))
        )

    def _lose(self, link: _Link) -> None:
        """The connection broke: its blocks are open again, and it is dialled again."""
        self._world.ledger.seen["state source lost"] += 1
        link.end()
        self._dial(link.sync, link.plan, link.ticket, link.is_holder, 1)

    def _arrive(self, link: _Link, index: int) -> None:
        sync = link.sync
        if not link.is_up() or sync.process.is_paused or not self._is_serving(link):
            if link.is_up():
                self._lose(link)
            return
        stage, fetch = sync.stage, link.fetch
        assert stage is not None
        assert link.source.stage is not None
        link.under_way -= 1
        block = bytearray(link.source.stage.block(index))
        if self._world.is_faulty and self._world.agenda.chance(0.005):
            block[0] ^= 1
        is_good = stage.is_here(index) or stage.accept(index, bytes(block))
        fetch.on_block(link.number, index, self._world.agenda.now, is_good=is_good)
        if not is_good:
            self._world.ledger.seen["wrong block refused"] += 1
            self._lose(link)
            return
        if not link.is_holder:
            self._world.ledger.seen["block given by a fellow"] += 1
        self._tell_fellows(sync, index)
        if fetch.is_done:
            self._world.ledger.seen["state fetched"] += 1
            if len(sync.sources) > 1:
                self._world.ledger.seen["state fetched from several"] += 1
            plan, sync.fetch = link.plan, None
            sync.process.deliver(TransferDone(sync.call, plan.generation, plan.digest))
        else:
            self._ask(link)

    def _tell_fellows(self, sync: _Sync, index: int) -> None:
        """Whoever is connected to this requester hears of the block."""
        for other in list(self._syncs.values()):
            for number, source in other.sources.items():
                if source is sync and other.fetch is not None:
                    self._tell(other, number, other.fetch, index)

    def _tell(self, other: _Sync, number: int, fetch: FetchPlan, index: int) -> None:
        def arrive() -> None:
            if other.fetch is fetch and number in other.sources:
                fetch.on_have(number, index, 1)

        self._after(arrive)


@dataclass(eq=False)
class _Link:
    """One connection of a requester to a source."""

    sync: _Sync
    plan: SyncPlan
    fetch: FetchPlan
    source: _Sync
    number: int
    ticket: Ticket
    is_holder: bool
    under_way: int = 0

    def is_up(self) -> bool:
        """Does the requester still fetch, and on this connection?"""
        return (
            self.sync.is_open
            and self.sync.plan is self.plan
            and self.sync.fetch is self.fetch
            and self.number in self.sync.sources
        )

    def end(self) -> None:
        """It broke."""
        del self.sync.sources[self.number]
        self.fetch.drop_source(self.number)
