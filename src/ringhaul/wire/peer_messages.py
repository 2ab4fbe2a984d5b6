"""Messages between peers: the handshake of a data stream, and of a state transfer.

After the handshake a data stream carries segment headers and tensor bytes, and a state
transfer carries state records and blocks.
"""

from dataclasses import dataclass
from typing import Annotated

from ringhaul.ids import Generation, OpKey, PeerId
from ringhaul.limits import STREAMS_MAX
from ringhaul.wire.fields import peer_id, text, token, uint, uint_up_to
from ringhaul.wire.message import Message, message
from ringhaul.wire.records import op_key


@message(kind=40)
@dataclass(frozen=True, slots=True, kw_only=True)
class StreamHello(Message):
    """Dialling peer -> next rank: the first bytes of a data stream."""

    version: Annotated[int, uint]
    dialler: Annotated[PeerId, peer_id]
    acceptor: Annotated[PeerId, peer_id]
    #: A random number that the acceptor has to answer.
    challenge: Annotated[bytes, token]
    stream_index: Annotated[int, uint_up_to(STREAMS_MAX - 1)]
    stream_count: Annotated[int, uint_up_to(STREAMS_MAX)]
    #: Counts the links a dialler has made; streams of one link have the same number.
    link_number: Annotated[int, uint]

    def problem(self) -> str | None:
        """An index has to be below the count."""
        if self.stream_index >= self.stream_count:
            return f"stream {self.stream_index} of {self.stream_count}"
        return None


@message(kind=41)
@dataclass(frozen=True, slots=True, kw_only=True)
class StreamWelcome(Message):
    """Accepting peer -> dialling peer: it is the one that was meant."""

    #: `Ticket.proof_for` the dialler's challenge.
    proof: Annotated[bytes, token]
    #: A random number that the dialler has to answer.
    challenge: Annotated[bytes, token]


@message(kind=42)
@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRefused(Message):
    """Accepting peer -> dialling peer, before it closes the connection."""

    reason: Annotated[str, text]


@message(kind=45)
@dataclass(frozen=True, slots=True, kw_only=True)
class StreamChosen(Message):
    """Dialling peer -> accepting peer, after the welcome: of several addresses, this one.

    Segments follow. A connection that is not chosen is closed by the dialler.
    """

    #: `Ticket.token_for` the acceptor's challenge.
    answer: Annotated[bytes, token]


@message(kind=43)
@dataclass(frozen=True, slots=True, kw_only=True)
class StateRequest(Message):
    """Peer that differs -> holder or fellow: let me ask for the elected state of this sync."""

    version: Annotated[int, uint]
    requester: Annotated[PeerId, peer_id]
    holder: Annotated[PeerId, peer_id]
    generation: Annotated[Generation, uint]
    key: Annotated[OpKey, op_key]
    token: Annotated[bytes, token]


@message(kind=44)
@dataclass(frozen=True, slots=True, kw_only=True)
class StateOffer(Message):
    """Holder or fellow -> requester: ask. State records follow both ways."""

    proof: Annotated[bytes, token]
    block_count: Annotated[int, uint]
