"""Messages of a session between a peer and the coordinator: how it begins, lives and ends.

Those of the handshake and heartbeats are not numbered; all others are, are kept until
acknowledged, and are sent again when a session is resumed on a new connection.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from ringhaul.errors import WireError
from ringhaul.ids import PeerId
from ringhaul.limits import PEERS_MAX, PROTOCOL_VERSION
from ringhaul.wire.fields import (
    address_host,
    boolean,
    name_text,
    optional,
    peer_id,
    seconds,
    text,
    token,
    uint,
    uint_up_to,
)
from ringhaul.wire.message import Message, message
from ringhaul.wire.records import Address, addresses

group_number = uint_up_to(2**32 - 1)


def check_version(values: Sequence[object]) -> None:
    """Refuse another version of the protocol before its unknown fields are read."""
    if values and type(values[0]) is int and values[0] != PROTOCOL_VERSION:
        raise WireError(
            f"protocol version {values[0]} was spoken, this side speaks {PROTOCOL_VERSION}: "
            "install the same ringhaul on both"
        )


# -- Handshake: not numbered ------------------------------------------------------------------


@message(kind=1)
@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """Peer -> coordinator, first on a new connection: may I take part?"""

    version: Annotated[int, uint]
    name: Annotated[str, name_text]
    group: Annotated[int, group_number]
    #: Where it listens, best first. The coordinator adds the address it sees.
    addresses: Annotated[tuple[Address, ...], addresses]
    min_world_size: Annotated[int, uint_up_to(PEERS_MAX)]

    def problem(self) -> str | None:
        """A peer has to listen somewhere, and counts itself."""
        return _find_problem(self)


@message(kind=2)
@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(Message):
    """Peer -> coordinator, first on a new connection: it is me again.

    The envelope's `ack` is the last message received before. The rest of `Hello` is repeated
    for a coordinator that was started again and may not know it.
    """

    version: Annotated[int, uint]
    peer: Annotated[PeerId, peer_id]
    secret: Annotated[bytes, token]
    group: Annotated[int, group_number]
    addresses: Annotated[tuple[Address, ...], addresses]
    min_world_size: Annotated[int, uint_up_to(PEERS_MAX)]

    def problem(self) -> str | None:
        """What a `Hello` may not say, a `Resume` may not either."""
        return _find_problem(self)


def _find_problem(message: Hello | Resume) -> str | None:
    if not message.addresses:
        return "no address to reach the peer at"
    if message.min_world_size < 1:
        return "min_world_size is 0"
    return None


@message(kind=3)
@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(Message):
    """Coordinator -> peer, answer to `Hello`: the peer has a session and is pending."""

    peer: Annotated[PeerId, peer_id]
    secret: Annotated[bytes, token]
    #: The address the coordinator sees the peer at.
    seen_host: Annotated[str, address_host]
    heartbeat_interval_s: Annotated[float, seconds]


@message(kind=4)
@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Message):
    """Coordinator -> peer, answer to `Resume`. `ack` is the last message received before."""

    #: The coordinator was started again: messages are counted from 1 both ways, and the peer
    #: tells all it knows, with a `Report` at the end.
    reset: Annotated[bool, boolean] = False


@message(kind=5)
@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(Message):
    """Coordinator -> peer, before it closes the connection: why."""

    reason: Annotated[str, text]
    #: The session named is not known here: it was evicted, or never existed.
    unknown_session: Annotated[bool, boolean] = False


@message(kind=6)
@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Message):
    """Both ways, once an interval: I live, and `ack` says what I have."""

    #: Not 0: the receiver shall answer at once with this number as `pong`.
    ping: Annotated[int, uint] = 0
    pong: Annotated[int, uint] = 0
    #: From the coordinator: all members have the decisions up to this number.
    settled: Annotated[int, uint] = 0
    #: Payload that a member has sent to the next rank since its last heartbeat, by the second;
    #: for `ringhaul status`.
    outgoing_bytes_per_s: Annotated[int | None, optional(uint)] = None


# -- The end ----------------------------------------------------------------------------------


@message(kind=17)
@dataclass(frozen=True, slots=True, kw_only=True)
class Leave(Message):
    """Peer -> coordinator: I go, in an orderly way."""


@message(kind=18)
@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye(Message):
    """Coordinator -> peer, answer to `Leave`: you may close everything."""


@message(kind=19)
@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted(Message):
    """Coordinator -> peer: you take no part any more. Final."""

    reason: Annotated[str, text]
