"""Two ranks in one event loop, linked over loopback TCP: planes and links without machines."""

import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import trio
import trio.lowlevel
from numpy.typing import NDArray

from ringhaul.core.peer.steps import CallGivenUp, LinkBroken, LinkUp, TransferDone
from ringhaul.ids import CallId, Generation, OpKey, PeerId, Rank, ReduceOp
from ringhaul.io.incoming import IncomingLink, IncomingStream
from ringhaul.io.outgoing import OutgoingLink
from ringhaul.io.plane import DataPlane
from ringhaul.io.ring_transfer import RingTransfer
from ringhaul.io.sockets import DataSocket
from ringhaul.wire.records import CollectiveKind, Signature

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
