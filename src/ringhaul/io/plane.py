"""The data plane of a peer: its transfers, and what came too early.

Executes what the machine orders: begins and drops transfers, on the links that `Neighbours`
keeps. Reports transfers that are done.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import trio

from ringhaul import limits
from ringhaul.core.peer.steps import CallGivenUp, LinkBroken, LinkUp, TransferDone
from ringhaul.errors import CodecError, WireError
from ringhaul.ids import NO_GENERATION, OpKey
from ringhaul.io.buffers import describe_shortage
from ringhaul.io.incoming import IncomingLink, IncomingStream
from ringhaul.io.neighbours import Neighbours
from ringhaul.io.reactor import Reactor
from ringhaul.io.system import REAL, System
from ringhaul.io.transfer import Segment, Transfer, TransferKey, eager_cost
from ringhaul.wire.coordinator_messages import Outcome
from ringhaul.wire.segment_header import SegmentHeader, WireKey

Report = Callable[[LinkUp | LinkBroken | TransferDone | CallGivenUp], None]

_SWEEPS_PER_ADAPTATION = 10


class DataPlane:
    """Transfers of one peer, and the links they use."""

    def __init__(
        self,
        *,
        nursery: trio.Nursery,
        report: Report,
        streams: int | None,
        coordinator_host: str,
        system: System = REAL,
    ) -> None:
        self._report = report
        self.generation = NO_GENERATION
        self.reactor = Reactor(system)
        self.neighbours = Neighbours(
            nursery=nursery,
            reactor=self.reactor,
            data=self,
            report=report,
            streams=streams,
            coordinator_host=coordinator_host,
        )
        self._transfers: dict[TransferKey, Transfer] = {}
        self._early: dict[TransferKey, list[tuple[SegmentHeader, memoryview]]] = {}
        self.early_bytes = 0
        #: Operations of this generation that ended here, the latest of them: copies of their data
        #: may still arrive.
        self._dead: OrderedDict[TransferKey, None] = OrderedDict()
        self._is_sweeping = False
        self._sweep_wanted = trio.Event()

    async def run(self) -> None:
        """Move data until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.reactor.run)
            nursery.start_soon(self._sweep)

    def use_ring(self, generation: int) -> None:
        """A generation is open: early data may be read, older data is gone."""
        assert not self._transfers, "a transfer outlived its generation"
        self.generation = type(self.generation)(generation)
        self._early.clear()
        self.early_bytes = 0
        self._dead.clear()
        if self.neighbours.outgoing is not None:
            self.neighbours.outgoing.use(self.generation)
        if self.neighbours.incoming is not None:
            self.neighbours.incoming.resume()

    def close(self) -> None:
        """Close all links."""
        self.neighbours.close()

    # -- transfers ----------------------------------------------------------------------------

    def begin(self, transfer: Transfer) -> None:
        """Send what is ours, take what came early, and grant the rest."""
        assert transfer.generation == self.generation
        self._transfers[transfer.key] = transfer
        self._uncount(transfer.key)
        early = self._early.pop(transfer.key, ())
        if self.neighbours.incoming is not None:
            self.neighbours.incoming.grant(transfer)
        if self.neighbours.outgoing is not None:
            if not transfer.is_small:
                transfer.allow_runs(*self.neighbours.outgoing.run_limits())
            self.neighbours.outgoing.begin(transfer, self._own_segments(transfer))
        else:
            for _ in self._own_segments(transfer):
                pass  # a world of one is done by asking
        self.early_bytes -= sum(eager_cost(len(payload)) for _, payload in early)
        try:
            for header, payload in early:
                if transfer.expects(header):
                    self._take(transfer, header, payload)
        except WireError as error:  # as if it had come just now
            if self.neighbours.incoming is not None:
                self.neighbours.incoming.on_broken(str(error))
        if transfer.is_done and transfer.key in self._transfers:
            self._report(TransferDone(transfer.call, transfer.generation, transfer.digest))

    def release(self, transfer: Transfer) -> None:
        """An attempt ended, well or not: no stream holds its memory after this."""
        if self._transfers.get(transfer.key) is transfer:
            del self._transfers[transfer.key]
            self._bury(transfer.key)  # the rest of its data, or a slow stream's copy, may come
        for link in (self.neighbours.outgoing, self.neighbours.incoming):
            if link is not None:
                link.release(transfer)

    def forget(self, key: OpKey) -> None:
        """An operation failed for all: what came early, or comes yet, is thrown away."""
        wire_key = WireKey(key)
        dead = (wire_key.tag_hash, wire_key.ordinal)
        self._bury(dead)
        for _, payload in self._early.pop(dead, ()):
            self.early_bytes -= eager_cost(len(payload))

    def _bury(self, key: TransferKey) -> None:
        """Remember that a key is dead; the oldest, whose data came long ago, are forgotten."""
        self._uncount(key)
        self._dead[key] = None
        while len(self._dead) > limits.VERDICTS_KEPT_MAX:
            self._dead.popitem(last=False)

    def _uncount(self, key: TransferKey) -> None:
        """An operation is granted, or over: its sender has its budget back at once.

        So what streams have half read of its early data takes nothing of it any more.
        """
        if self.neighbours.incoming is None:
            return
        for stream in self.neighbours.incoming.streams:
            header = stream.header
            if header is not None and (header.tag_hash, header.ordinal) == key:
                self._uncount_payload(stream, header)

    def _uncount_payload(self, stream: IncomingStream, header: SegmentHeader) -> None:
        if header.generation == self.generation:
            self.early_bytes -= stream.eager_cost
        stream.eager_cost = 0

    def _take(self, transfer: Transfer, header: SegmentHeader, payload: memoryview | None) -> None:
        try:
            segments = transfer.accept(header, payload)
        except (CodecError, MemoryError) as error:
            self._fail(transfer, error)
            return
        if segments and self.neighbours.outgoing is not None:
            self.neighbours.outgoing.enqueue(segments)

    def _own_segments(self, transfer: Transfer) -> Iterator[Segment]:
        try:
            yield from transfer.first_segments()
        except (CodecError, MemoryError) as error:
            self._fail(transfer, error)

    def _fail(self, transfer: Transfer, error: CodecError | MemoryError) -> None:
        """This rank cannot do its part: all members are to hear why."""
        given_up = CallGivenUp(transfer.call, Outcome.UNFIT, str(error))
        if isinstance(error, MemoryError):
            given_up = CallGivenUp(transfer.call, Outcome.FAILED, describe_shortage(error))
        self._report(given_up)

    # -- what streams ask ---------------------------------------------------------------------

    def transfers_in_flight(self) -> Iterable[Transfer]:
        """Whose data the sender has to be granted."""
        return list(self._transfers.values())

    def place(self, stream: IncomingStream, header: SegmentHeader) -> None:
        """Where a payload goes: to its transfer, aside if it is early, away if stale."""
        if header.generation < self.generation:
            return
        key = (header.tag_hash, header.ordinal)
        transfer = self._transfers.get(key)
        if transfer is not None:
            if transfer.expects(header):
                stream.transfer = transfer
                view = transfer.place(header)
                if view is not None:
                    stream.payload = view
                    stream.is_placed = True
            return
        if key in self._dead:
            return
        cost = eager_cost(header.payload_bytes)
        if self.early_bytes + cost > 2 * limits.EAGER_BYTES_MAX:
            # Twice: a sender may hear first that an operation has failed, and go on.
            raise WireError("more early data than was granted")
        self.early_bytes += cost
        stream.eager_cost = cost
        stream.eager = np.empty(header.payload_bytes, np.uint8).data  # not zeroed, as bytearray is
        stream.payload = stream.eager

    def accept(self, stream: IncomingStream, header: SegmentHeader) -> None:
        """A payload is whole: reduce it, or keep it for the call that is to come."""
        if header.generation < self.generation:
            return
        key = (header.tag_hash, header.ordinal)
        transfer = self._transfers.get(key)
        if stream.eager is not None:
            if transfer is None and key not in self._dead:
                self._early.setdefault(key, []).append((header, stream.eager))
                stream.eager_cost = 0  # it counts as long as it is kept
                return
            self._uncount_payload(stream, header)
        elif stream.transfer is None or stream.transfer is not transfer:
            return
        if transfer is None or (stream.eager is not None and not transfer.expects(header)):
            return
        self._take(transfer, header, None if stream.is_placed else stream.payload)
        stream.link.discard_others(stream, transfer)
        if transfer.is_done:
            self._report(TransferDone(transfer.call, transfer.generation, transfer.digest))

    def drop_partial(self, stream: IncomingStream) -> None:
        """A payload will never be whole."""
        if stream.header is not None:
            self._uncount_payload(stream, stream.header)
        stream.eager = None

    def on_incoming_broken(self, link: IncomingLink, reason: str) -> None:
        """The link from the previous rank is of no use any more."""
        self.neighbours.on_incoming_broken(link, reason)

    # -- acknowledgements -----------------------------------------------------------------------

    def on_under_way(self) -> None:
        """Something is not acknowledged: look at it regularly until it is."""
        if not self._is_sweeping:
            self._is_sweeping = True
            self._sweep_wanted.set()

    async def _sweep(self) -> None:
        count = 0
        while True:
            await self._sweep_wanted.wait()
            await trio.sleep(limits.SWEEP_INTERVAL_S)
            now = self.reactor.clock()
            incoming, outgoing = self.neighbours.incoming, self.neighbours.outgoing
            is_holding = incoming is not None and incoming.sweep(now)
            is_under_way = outgoing is not None and outgoing.sweep(now)
            if not is_holding and not is_under_way:
                self._is_sweeping = False
                self._sweep_wanted = trio.Event()
            count += 1
            if count % _SWEEPS_PER_ADAPTATION == 0:
                self.neighbours.adapt()
