"""The data plane of a peer: its two links, its transfers, and what came too early.

Executes what the machine orders: makes links, begins and drops transfers. Reports links that
are up or broken and transfers that are done.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import trio

from ringhaul import limits
from ringhaul.core.peer.steps import LinkBroken, LinkUp, TransferDone
from ringhaul.errors import WireError
from ringhaul.ids import NO_GENERATION, OpKey, PeerId
from ringhaul.io.dial import DialError, Reached, dialable, reach
from ringhaul.io.ring_transfer import RingTransfer, TransferKey
from ringhaul.io.sockets import DataSocket, StreamEnded
from ringhaul.io.streams import IncomingLink, IncomingStream, OutgoingLink
from ringhaul.wire.codec import Envelope
from ringhaul.wire.coordinator_messages import Proposal
from ringhaul.wire.peer_messages import StreamChosen, StreamHello
from ringhaul.wire.records import Address, Ticket
from ringhaul.wire.segment_header import SegmentHeader, WireKey

Report = Callable[[LinkUp | LinkBroken | TransferDone], None]


class DataPlane:
    """Links and transfers of one peer."""

    def __init__(
        self, *, nursery: trio.Nursery, report: Report, streams: int, coordinator_host: str
    ) -> None:
        self._nursery = nursery
        self._report = report
        self._stream_count = streams
        self._coordinator_host = coordinator_host
        self.own_host_is_loopback = True
        self.peer_id = PeerId("")
        self.run_id = bytes(16)
        self._generation = NO_GENERATION
        self._changed = trio.Event()
        #: The proposal that the links are made for.
        self._made_for = NO_GENERATION
        self._previous: Ticket | None = None
        self._next: Ticket | None = None
        self._outgoing: OutgoingLink | None = None
        self._incoming: IncomingLink | None = None
        self._dialling: trio.CancelScope | None = None
        self._links_made = 0
        self._transfers: dict[TransferKey, RingTransfer] = {}
        self._early: dict[TransferKey, list[tuple[SegmentHeader, memoryview]]] = {}
        self._early_bytes = 0
        #: Operations of this generation that ended without result: their data may still arrive.
        self._dead: OrderedDict[TransferKey, None] = OrderedDict()

    # -- links --------------------------------------------------------------------------------

    def make_links(self, proposal: Proposal) -> None:
        """Dial the next rank unless the link is there; expect the previous."""
        self._next, self._previous = proposal.next, proposal.previous
        self._made_for = proposal.generation
        self._notify()
        if self._dialling is not None:
            self._dialling.cancel()
        if self._outgoing and (not self._next or self._outgoing.peer != self._next.peer):
            self._outgoing.close()
            self._outgoing = None
        if self._incoming and (not self._previous or self._incoming.peer != self._previous.peer):
            self._incoming.close()
            self._incoming = None
        if self._previous is not None and self._incoming is None:
            self._nursery.start_soon(self._watch_previous, self._previous)
        if self._next is None or self._outgoing is not None:
            self._report(LinkUp(proposal.generation))
        else:
            # made here: a task that has not started yet can be cancelled too
            self._dialling = trio.CancelScope()
            self._nursery.start_soon(self._dial, proposal, self._next, self._dialling)

    async def _dial(self, proposal: Proposal, ticket: Ticket, scope: trio.CancelScope) -> None:
        with scope:
            self._links_made += 1
            number = self._links_made
            socks: list[DataSocket] = []
            try:
                first = await self._reach(ticket, self.addresses_of(ticket), 0, number)
                socks.append(first.sock)
                for index in range(1, self._stream_count):
                    more = await self._reach(ticket, [first.address], index, number)
                    socks.append(more.sock)
            except DialError as error:
                for sock in socks:
                    sock.close()
                broken = LinkBroken(
                    neighbour=ticket.peer, refused=error.refused, reason=error.reason
                )
                self._report(broken)
                return
            except BaseException:  # cancelled; out of a nursery that comes as a group
                for sock in socks:
                    sock.close()
                raise
            if scope.cancel_called:  # replaced, or over, since the last handshake ended
                for sock in socks:
                    sock.close()
                return
            link = OutgoingLink(ticket.peer, socks, self._on_broken)
            link.use(self._generation)
            self._outgoing = link
            link.start(self._nursery)
            self._report(LinkUp(proposal.generation))

    def addresses_of(self, ticket: Ticket) -> list[Address]:
        """Where a peer may be reached from here."""
        return dialable(ticket.addresses, self._coordinator_host, self.own_host_is_loopback)

    async def _reach(
        self, ticket: Ticket, addresses: Sequence[Address], index: int, number: int
    ) -> Reached:
        hello = StreamHello(
            version=limits.PROTOCOL_VERSION,
            dialler=self.peer_id,
            acceptor=ticket.peer,
            token=ticket.token,
            stream_index=index,
            stream_count=self._stream_count,
            link_number=number,
        )
        envelope = Envelope(message=hello, run_id=self.run_id)
        reached = await reach(addresses, envelope, ticket.proof, limits.LINK_DIAL_S)
        try:
            await reached.sock.send_message(Envelope(message=StreamChosen(), run_id=self.run_id))
        except StreamEnded as error:
            reached.sock.close()
            raise DialError(str(error), refused=False) from None
        except BaseException:  # cancelled; out of a nursery that comes as a group
            reached.sock.close()
            raise
        return reached

    def identify(self, peer_id: PeerId, run_id: bytes) -> None:
        """The coordinator has welcomed this peer. A neighbour may have dialled before that."""
        if peer_id != self.peer_id:
            self.peer_id, self.run_id = peer_id, run_id
            self._notify()

    async def wait_identity(self) -> PeerId:
        """Wait until this peer knows its name. The caller bounds it."""
        while not self.peer_id:
            await self._changed.wait()
        return self.peer_id

    async def _watch_previous(self, ticket: Ticket) -> None:
        """Report if the previous rank does not dial: it may think that its old link is up."""
        made_for = self._made_for
        await trio.sleep(2 * limits.LINK_DIAL_S)
        is_up = self._incoming is not None and self._incoming.peer == ticket.peer
        if made_for == self._made_for and not is_up:
            await self._probe(ticket, "the previous rank did not dial")

    async def wait_expected(self, hello: StreamHello) -> bytes:
        """Wait until a proposal names this dialler; return the proof. The caller bounds it."""
        while True:
            ticket = self._previous
            if ticket and ticket.peer == hello.dialler and ticket.token == hello.token:
                return ticket.proof
            await self._changed.wait()

    def add_incoming(self, hello: StreamHello, sock: DataSocket) -> None:
        """A stream from the previous rank is proved; a newer link replaces an older."""
        link = self._incoming
        if link is None or link.peer != hello.dialler or link.number < hello.link_number:
            if link is not None:
                link.close()
            link = IncomingLink(hello.dialler, hello.link_number, self, self._on_broken)
            self._incoming = link
        elif link.number > hello.link_number:
            sock.close()
            return
        link.add(sock, self._nursery)
        if len(link.streams) == 1:
            for transfer in self._transfers.values():
                link.grant(transfer)

    def _on_broken(self, link: OutgoingLink | IncomingLink, reason: str) -> None:
        """A stream ended: the link is closed, and the neighbour tried once more."""
        link.close()
        ticket = self._next if link is self._outgoing else self._previous
        if link is self._outgoing:
            self._outgoing = None
        elif link is self._incoming:
            self._incoming = None
        else:
            return  # replaced already
        if ticket is not None and ticket.peer == link.peer:
            self._nursery.start_soon(self._probe, ticket, reason)

    async def _probe(self, ticket: Ticket, reason: str) -> None:
        """Find out whether a neighbour still listens: a refusal is a witness of its death.

        If another ring is proposed meanwhile, its links are made anew: nothing is reported.
        """
        made_for = self._made_for
        refused = False
        hello = StreamHello(
            version=limits.PROTOCOL_VERSION,
            dialler=self.peer_id,
            acceptor=ticket.peer,
            token=bytes(16),
            stream_index=0,
            stream_count=1,
            link_number=0,
        )
        envelope = Envelope(message=hello, run_id=self.run_id)
        try:
            reached = await reach(
                self.addresses_of(ticket), envelope, ticket.proof, limits.LINK_DIAL_S
            )
            reached.sock.close()
        except DialError as error:
            refused = error.refused
            reason = f"{reason}; then {error.reason}"
        if made_for == self._made_for:
            self._report(LinkBroken(neighbour=ticket.peer, refused=refused, reason=reason))

    def use_ring(self, generation: int) -> None:
        """A generation is open: early data may be read, older data is gone."""
        assert not self._transfers, "a transfer outlived its generation"
        self._generation = type(self._generation)(generation)
        self._early.clear()
        self._early_bytes = 0
        self._dead.clear()
        if self._outgoing is not None:
            self._outgoing.use(self._generation)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def close(self) -> None:
        """Close all links."""
        for link in (self._outgoing, self._incoming):
            if link is not None:
                link.close()
        self._outgoing = self._incoming = None

    # -- transfers ----------------------------------------------------------------------------

    def begin(self, transfer: RingTransfer) -> None:
        """Send what is ours, take what came early, and grant the rest."""
        assert transfer.generation == self._generation
        self._transfers[transfer.key] = transfer
        if self._incoming is not None:
            self._incoming.grant(transfer)
        for segment in transfer.first_segments():
            if self._outgoing is not None:
                self._outgoing.enqueue(segment)
        for header, payload in self._early.pop(transfer.key, ()):
            self._early_bytes -= len(payload)
            self._take(transfer, header, payload)
        if transfer.is_done and transfer.key in self._transfers:
            self._report(TransferDone(transfer.call, transfer.generation))

    def release(self, transfer: RingTransfer) -> None:
        """An attempt ended, well or not: no stream holds its memory after this."""
        if self._transfers.get(transfer.key) is transfer:
            del self._transfers[transfer.key]
            if not transfer.is_done:
                self._bury(transfer.key)  # the rest of its data is on its way
        for link in (self._outgoing, self._incoming):
            if link is not None:
                link.release(transfer)

    def forget(self, key: OpKey) -> None:
        """An operation failed for all: what came early, or comes yet, is thrown away."""
        wire_key = WireKey(key)
        dead = (wire_key.tag_hash, wire_key.ordinal)
        self._bury(dead)
        for _, payload in self._early.pop(dead, ()):
            self._early_bytes -= len(payload)

    def _bury(self, key: TransferKey) -> None:
        """Remember that a key is dead; the oldest, whose data came long ago, are forgotten."""
        self._dead[key] = None
        while len(self._dead) > limits.VERDICTS_KEPT_MAX:
            self._dead.popitem(last=False)

    def _take(self, transfer: RingTransfer, header: SegmentHeader, payload: memoryview) -> None:
        segment = transfer.accept(header, payload)
        if segment is not None and self._outgoing is not None:
            self._outgoing.enqueue(segment)

    # -- what streams ask ---------------------------------------------------------------------

    async def wait_generation(self, generation: int) -> None:
        """Leave data of a generation unread until it is open here."""
        while generation > self._generation:
            await self._changed.wait()

    def place(self, stream: IncomingStream, header: SegmentHeader) -> None:
        """Where a payload goes: to its transfer, aside if it is early, away if stale."""
        if header.generation < self._generation:
            return
        key = (header.tag_hash, header.ordinal)
        transfer = self._transfers.get(key)
        if transfer is not None:
            if transfer.expects(header):
                stream.transfer = transfer
                stream.view = transfer.place(header) or stream.scratch
            return
        if key in self._dead:
            return
        if self._early_bytes + header.payload_bytes > limits.EAGER_BYTES_MAX:
            raise WireError("more early data than was granted")
        self._early_bytes += header.payload_bytes
        stream.eager = np.empty(header.payload_bytes, np.uint8).data  # not zeroed, as bytearray is
        stream.view = stream.eager

    def accept(self, stream: IncomingStream, header: SegmentHeader) -> None:
        """A payload is whole: reduce it, or keep it for the call that is to come."""
        if header.generation < self._generation:
            return
        key = (header.tag_hash, header.ordinal)
        transfer = self._transfers.get(key)
        if stream.eager is not None:
            if transfer is None and key not in self._dead:
                self._early.setdefault(key, []).append((header, stream.eager))
                return
            self._early_bytes -= len(stream.eager)
        elif stream.transfer is None or stream.transfer is not transfer:
            return
        if transfer is None or not transfer.expects(header):
            return
        in_place = stream.eager is None and transfer.place(header) is not None
        payload = None if in_place else stream.view[: header.payload_bytes]
        segment = transfer.accept(header, payload)
        if segment is not None and self._outgoing is not None:
            self._outgoing.enqueue(segment)
        if transfer.is_done:
            self._report(TransferDone(transfer.call, transfer.generation))
