"""Simulated data links, and transfers around the ring.

A member's part of a transfer needs all members of its generation and all links of its ring;
of a broadcast, those from the root to it. Its result is the tuple of (peer, value), in ring
order, of those who put something in, so that an oracle can tell who contributed what.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from typing import TYPE_CHECKING

from ringhaul.core.peer.steps import (
    BeginTransfer,
    LinkBroken,
    LinkUp,
    TransferDone,
)
from ringhaul.ids import CallId, Generation, OpKey, PeerId
from ringhaul.limits import LINK_DIAL_S, LINK_STALLED_S
from ringhaul.wire.coordinator_messages import Proposal
from ringhaul.wire.records import Ticket

if TYPE_CHECKING:
    from ringhaul.testing.process import Process
    from ringhaul.testing.simulator import World

Value = tuple[tuple[PeerId, int], ...]
Ring = tuple[PeerId, ...]
#: Two foundings of one run may number their rings alike.
Attempt = tuple[int, Generation, OpKey, Ring]


@dataclasses.dataclass(frozen=True, slots=True)
class _Posted:
    """A member's part of an attempt."""

    process: Process
    call: CallId
    value: int
    #: Whose parts it needs, its own too: of a broadcast all from the root to it.
    path: tuple[PeerId, ...]
    is_cast: bool


class DataPlane:
    """All data links of a world, and what moves on them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.up: set[tuple[Process, Process]] = set()
        #: Directed pairs that cannot connect.
        self.cut: set[tuple[Process, Process]] = set()
        #: Links that swallow all data for now; both ends live, and do not know yet.
        self.stalled: set[tuple[Process, Process]] = set()
        self._posted: dict[Attempt, dict[PeerId, _Posted]] = {}

    # -- links --------------------------------------------------------------------------------

    def make_links(self, process: Process, proposal: Proposal) -> None:
        """Keep the links the proposal needs, drop the others, dial what is missing."""
        process.rings[proposal.generation] = proposal.ring_order
        process.proposal = proposal
        after, before = self._neighbours(proposal)
        for pair in [pair for pair in self._sorted_links() if process in pair]:
            sender, receiver = pair
            if (sender is process and receiver is not after) or (
                receiver is process and sender is not before
            ):
                self._drop_link(pair, told=[p for p in pair if p is not process], refused=False)
        deadline_at = self._world.agenda.now + LINK_DIAL_S
        self._world.agenda.after(
            self._delay_s(), lambda: self._try_link(process, proposal, deadline_at)
        )

        self._world.agenda.after(2 * LINK_DIAL_S, lambda: self._check_previous(process, proposal))

    def _check_previous(self, process: Process, proposal: Proposal) -> None:
        """Who waits for the previous rank in vain says so, though that one may be content."""
        if process.is_alive and process.proposal is proposal and proposal.previous is not None:
            before = self._world.by_id[proposal.previous.peer]
            if (before, process) not in self.up:
                self._tell_broken(process, proposal.previous, refused=not before.is_alive)

    def _try_link(self, process: Process, proposal: Proposal, deadline_at: float) -> None:
        agenda = self._world.agenda
        if not process.is_alive or process.proposal is not proposal:
            return
        after, _ = self._neighbours(proposal)
        if after is None or proposal.next is None:
            process.deliver(LinkUp(proposal.generation))
        elif not after.is_alive:
            self._tell_broken(process, proposal.next, refused=True)
        elif (process, after) in self.up:
            process.deliver(LinkUp(proposal.generation))
        elif self._is_reachable(process, after):
            self.up.add((process, after))
            process.deliver(LinkUp(proposal.generation))
        elif agenda.now >= deadline_at:
            self._tell_broken(process, proposal.next, refused=False)
        else:
            agenda.at(
                min(deadline_at, agenda.now + 0.2),
                lambda: self._try_link(process, proposal, deadline_at),
            )

    def _is_reachable(self, dialler: Process, acceptor: Process) -> bool:
        expected = acceptor.proposal is not None and acceptor.proposal.previous is not None
        if (dialler, acceptor) in self.cut or acceptor.is_paused or not expected:
            return False
        assert acceptor.proposal is not None
        assert acceptor.proposal.previous is not None
        return acceptor.proposal.previous.peer == dialler.peer_id

    def _neighbours(self, proposal: Proposal) -> tuple[Process | None, Process | None]:
        by_id = self._world.by_id
        return (
            by_id[proposal.next.peer] if proposal.next else None,
            by_id[proposal.previous.peer] if proposal.previous else None,
        )

    def _sorted_links(self) -> list[tuple[Process, Process]]:
        return sorted(self.up, key=lambda pair: (pair[0].index, pair[1].index))

    def pick_link(self, dice: random.Random | None = None) -> tuple[Process, Process] | None:
        """Any link that is up."""
        links = self._sorted_links()
        return (dice or self._world.agenda.dice).choice(links) if links else None

    def black_hole(self, pair: tuple[Process, Process]) -> None:
        """A link swallows all; its ends find out when it has moved nothing for too long."""
        self.stalled.add(pair)
        self._world.agenda.after(LINK_STALLED_S, lambda: self._find_stalled(pair))

    def _find_stalled(self, pair: tuple[Process, Process]) -> None:
        if pair in self.stalled and pair in self.up:
            self._world.ledger.seen["a link swallowed all data"] += 1
            self._drop_link(pair, told=list(pair), refused=False)

    def break_link(self, pair: tuple[Process, Process]) -> None:
        """A link is reset; one end or both notice."""
        told = [process for process in pair if self._world.agenda.chance(0.7)]
        self._drop_link(pair, told=told or [pair[0]], refused=False)

    def on_death(self, process: Process) -> None:
        """A process is gone: its neighbours find their redial refused."""
        for pair in [pair for pair in self._sorted_links() if process in pair]:
            self._drop_link(pair, told=[p for p in pair if p is not process], refused=True)

    def _drop_link(
        self, pair: tuple[Process, Process], *, told: list[Process], refused: bool
    ) -> None:
        self.up.discard(pair)
        self.stalled.discard(pair)

        def tell(process: Process, other: Process) -> None:
            # by then the ring may be another, or the link new
            if process.proposal is None or pair in self.up:
                return
            after, before = process.proposal.next, process.proposal.previous
            ticket = after if process is pair[0] else before
            if ticket is not None and self._world.by_id[ticket.peer] is other:
                self._tell_broken(process, ticket, refused=refused or not other.is_alive)

        for process in told:
            other = pair[1] if process is pair[0] else pair[0]
            self._world.agenda.after(
                self._delay_s(),
                lambda process=process, other=other: tell(process, other),  # type: ignore[misc]
            )

    def _tell_broken(self, process: Process, ticket: Ticket, *, refused: bool) -> None:
        reason = "connection refused" if refused else "reset or timed out"
        process.deliver(LinkBroken(neighbour=ticket.peer, refused=refused, reason=reason))

    # -- transfers ----------------------------------------------------------------------------

    def begin(self, process: Process, effect: BeginTransfer, value: int) -> None:
        """A member's part of a transfer may move; it ends once all that it needs have begun."""
        ring = process.rings[effect.generation]
        attempt = (process.group, effect.generation, effect.key, ring)
        assert ring[effect.rank] == process.peer_id
        assert len(ring) == effect.world_size
        path = ring
        if effect.root is not None:
            count = (effect.rank - effect.root) % len(ring) + 1
            path = (ring[effect.root :] + ring[: effect.root])[:count]
        posted = self._posted.setdefault(attempt, {})
        is_cast = effect.root is not None
        posted[process.peer_id] = _Posted(process, effect.call, value, path, is_cast)
        process.posted[effect.call] = attempt
        for each in posted.values():
            if process.peer_id in each.path and all(p in posted for p in each.path):
                sources = each.path[:1] if is_cast else each.path
                result = tuple((peer_id, posted[peer_id].value) for peer_id in sources)
                processes = [self._world.by_id[p] for p in each.path]
                more_s = self._world.weather.transfer_delay_s(processes)
                self._world.agenda.after(
                    self._transfer_s() + more_s,
                    lambda each=each, result=result: self._complete(  # type: ignore[misc]
                        attempt, each, result
                    ),
                )

    def _complete(self, attempt: Attempt, posted: _Posted, result: Value) -> None:
        process = posted.process
        if not process.is_alive or process.posted.get(posted.call) != attempt:
            return
        if not self._is_intact(attempt, posted):
            if self._world.agenda.chance(0.5):
                return  # what it needs got lost
        elif self._is_stalled(posted):
            self._world.agenda.after(0.3, lambda: self._complete(attempt, posted, result))
            return
        process.results[posted.call] = result
        digest = hashlib.blake2b(repr(result).encode(), digest_size=16).digest()
        spoils = self._world.spoils_results and self._world.is_faulty
        if spoils and self._world.agenda.chance(0.05):
            digest = bytes(16)
        process.deliver(TransferDone(posted.call, attempt[1], digest))

    def _is_stalled(self, posted: _Posted) -> bool:
        path = [self._world.by_id[p] for p in posted.path]
        ring = zip(path, path[1:] + path[:1], strict=True)
        return any(p.is_paused for p in path) or any(pair in self.stalled for pair in ring)

    def _is_intact(self, attempt: Attempt, posted: _Posted) -> bool:
        path = [self._world.by_id[p] for p in posted.path]
        after = path[1:] if posted.is_cast else path[1:] + path[:1]
        linked = all(pair in self.up for pair in zip(path, after, strict=False))
        others = self._posted.get(attempt, {})
        here = all(p.is_alive and p.peer_id in others for p in path)
        return here and (linked or len(path) == 1)

    def drop(self, process: Process, call: CallId) -> None:
        """An attempt ended, one way or the other."""
        attempt = process.posted.pop(call, None)
        if attempt is not None:
            posted = self._posted[attempt]
            del posted[process.peer_id]
            if not posted:
                del self._posted[attempt]

    def _delay_s(self) -> float:
        return self._world.agenda.between(0.001, 0.05)

    def _transfer_s(self) -> float:
        agenda = self._world.agenda
        return agenda.between(0.1, 0.8) if agenda.chance(0.1) else agenda.between(0.005, 0.08)
