"""Data streams under fire: segments that come, what is answered to those that go, handshakes."""

import random
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ringhaul import limits
from ringhaul.core.peer.steps import CallGivenUp, LinkBroken, LinkUp, TransferDone
from ringhaul.ids import CallId, Generation, OpKey, PeerId, Rank, ReduceOp
from ringhaul.io.coded_transfer import CodedTransfer
from ringhaul.io.incoming import IncomingLink
from ringhaul.io.listener import Listener
from ringhaul.io.outgoing import OutgoingLink
from ringhaul.io.packed_transfer import PackedTransfer
from ringhaul.io.plane import DataPlane
from ringhaul.io.reactor import READ
from ringhaul.io.ring_transfer import RingTransfer
from ringhaul.io.sockets import StreamEnded
from ringhaul.quant import SegmentCoder, find_codec
from ringhaul.testing.fuzz.makers import Maker
from ringhaul.testing.fuzz.mutants import mutated_bytes
from ringhaul.testing.fuzz.tape import IDLE_REACTOR, Tape, run_at_once
from ringhaul.wire.codec import encode
from ringhaul.wire.framing import frame
from ringhaul.wire.peer_messages import StateRequest, StreamChosen, StreamHello
from ringhaul.wire.records import CollectiveKind, Signature, Ticket
from ringhaul.wire.segment_header import SegmentHeader, SegmentKind, unpack_header

_GENERATION = Generation(3)
_ELEMENTS = 200
_PIECES = (1 << 20, 61, 40, 1)


def _transfer(rank: int, codec: str) -> RingTransfer:
    own: NDArray[Any] = np.arange(_ELEMENTS, dtype=np.float32) + rank
    signature = Signature(
        kind=CollectiveKind.ALL_REDUCE,
        op=ReduceOp.SUM,
        dtype="float32",
        element_count=_ELEMENTS,
        codec=codec,
    )
    facts: dict[str, Any] = {
        "call": CallId(1),
        "key": OpKey("t", 0),
        "generation": _GENERATION,
        "rank": Rank(rank),
        "world_size": 2,
        "signature": signature,
        "own": own,
        "result": np.empty_like(own),
    }
    if codec == "raw":
        return RingTransfer(**facts)
    coder = SegmentCoder(find_codec(codec), ReduceOp.SUM, own.dtype, 2)
    if coder.is_raw and coder.compressor is not None:
        return PackedTransfer(compressor=coder.compressor, **facts)
    return CodedTransfer(coder=coder, **facts)


def _say_all(codec: str) -> bytes:
    """All that rank 0 says to rank 1 in one operation."""
    sides = _transfer(0, codec), _transfer(1, codec)
    said = bytearray()
    waiting = [(0, segment) for segment in sides[0].first_segments()]
    waiting += [(1, segment) for segment in sides[1].first_segments()]
    while waiting:
        sender, segment = waiting.pop(0)
        if sender == 0:
            said += segment.header + bytes(segment.view)
        header = unpack_header(segment.header)
        answers = sides[1 - sender].accept(header, memoryview(bytearray(segment.view)))
        waiting += [(1 - sender, answer) for answer in answers]
    assert all(side.is_done for side in sides)
    return bytes(said)


class IncomingSegments:
    """A data stream from the previous rank, in the middle of an operation, or before it."""

    def __init__(self, codec: str, *, is_posted: bool) -> None:
        self.name = f"segments {codec} {'posted' if is_posted else 'early'}"
        self._codec = codec
        self._is_posted = is_posted
        self._original = _say_all(codec)
        self._plane = DataPlane(
            nursery=cast("Any", None), report=self._report, streams=1, coordinator_host=""
        )

    def _report(self, event: LinkUp | LinkBroken | TransferDone | CallGivenUp) -> None:
        assert isinstance(event, TransferDone | CallGivenUp)

    def originals(self, dice: random.Random) -> Sequence[bytes]:
        """The whole of an operation, whose segments may come in another order too."""
        return [self._original]

    def mutate(self, data: bytes, dice: random.Random) -> bytes:
        """Of headers and payloads alike."""
        return mutated_bytes(data, dice)

    def feed(self, data: bytes) -> bool:
        """Play it to the end; True if the operation was done by it."""
        with np.errstate(all="ignore"):  # as in the I/O thread
            return self._play(data)

    def _play(self, data: bytes) -> bool:
        plane = self._plane
        plane.use_ring(_GENERATION)
        link = IncomingLink(PeerId("a"), 1, IDLE_REACTOR, plane)
        plane.neighbours.incoming = link
        transfer = _transfer(1, self._codec)
        if self._is_posted:
            plane.begin(transfer)
        link.add(Tape(data, _PIECES[sum(data[:99]) % len(_PIECES)]))
        for stream in link.streams:
            # a paused stream waits for a generation that is never opened here
            while stream in link.streams and not stream._is_paused:
                stream.on_ready(READ)
                assert 0 <= plane.early_bytes <= 2 * limits.EAGER_BYTES_MAX
        if not self._is_posted:
            plane.begin(transfer)
        is_done = transfer.is_done
        if data == self._original:
            assert is_done
        plane.release(transfer)
        link.close()
        assert 0 <= plane.early_bytes <= 2 * limits.EAGER_BYTES_MAX
        return is_done


class Replies:
    """What a receiver answers: grants and acknowledgements."""

    name = "replies"

    def __init__(self) -> None:
        self._broken: list[str] = []

    def originals(self, dice: random.Random) -> Sequence[bytes]:
        """A grant, then acknowledgements."""
        key = _transfer(0, "raw").key
        grant = SegmentHeader(SegmentKind.GRANT, _GENERATION, *key, 0, 0, 0, 0).pack()
        ack = SegmentHeader(SegmentKind.ACK, 0, 0, 0, 0, 0, 1, 0).pack()
        return [grant + ack, ack, grant]

    def mutate(self, data: bytes, dice: random.Random) -> bytes:
        """Of the bytes."""
        return mutated_bytes(data, dice)

    def feed(self, data: bytes) -> bool:
        """True if something was acknowledged."""
        link = OutgoingLink(PeerId("b"), 1, IDLE_REACTOR, self)
        link.use(_GENERATION)
        link.add(Tape(data, _PIECES[len(data) % len(_PIECES)]))
        (stream,) = link.streams
        transfer = _transfer(0, "raw")
        link.begin(transfer, transfer.first_segments())
        while stream in link.streams:
            stream.on_ready(READ)
        link.release(transfer)
        return not stream.unacknowledged

    # what a link tells its owner
    def on_outgoing_broken(self, link: OutgoingLink, reason: str) -> None:
        """The other side broke the protocol, or ended."""
        link.close()

    def on_stream_lost(self, link: OutgoingLink, reason: str) -> None:
        """There is no other."""

    def on_under_way(self) -> None:
        """Nobody sweeps."""


class _Door:
    """What a listener asks before it lets anybody in."""

    def __init__(self) -> None:
        self.taken = 0

    async def wait_identity(self) -> PeerId:
        return PeerId("me")

    async def wait_expected(self, hello: StreamHello) -> Ticket:
        if hello.dialler != "before":
            raise StreamEnded("nobody expects it")
        return Ticket(hello.dialler, (), bytes(16), bytes(16))

    async def find(self, request: StateRequest) -> None:
        return None

    def add_incoming(self, hello: StreamHello, sock: object) -> None:
        self.taken += 1


class Handshakes:
    """What a stranger says to a peer's port."""

    name = "handshake"

    def __init__(self) -> None:
        self._door = _Door()
        door: Any = self._door
        self._listener = Listener(cast("Any", None), door, door)

    def originals(self, dice: random.Random) -> Sequence[bytes]:
        """Openings, and what follows on them."""
        maker = Maker(dice, names=("me", "before"), small=3)

        def said(*kinds: type) -> bytes:
            return b"".join(frame(encode(maker.envelope(kind))) for kind in kinds)

        return [said(StreamHello, StreamChosen) for _ in range(40)] + [said(StateRequest)] * 5

    def mutate(self, data: bytes, dice: random.Random) -> bytes:
        """Of the bytes."""
        return mutated_bytes(data, dice)

    def feed(self, data: bytes) -> bool:
        """Nobody gets in who cannot answer the challenge. True if it got as far as that."""
        tape = Tape(data, _PIECES[len(data) % len(_PIECES)])
        try:
            run_at_once(self._listener._prove(tape))
        except StreamEnded as error:
            return "as it said" in str(error)
        finally:
            assert not self._door.taken
        return tape.written_bytes > 0
