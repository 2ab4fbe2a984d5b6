"""Hostile bytes for every port: what is sent, and whether the connection is closed in time."""

import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ringhaul import limits
from ringhaul.ids import Generation, OpKey, PeerId
from ringhaul.wire.codec import Envelope, encode
from ringhaul.wire.coordinator_messages import Finished
from ringhaul.wire.framing import frame
from ringhaul.wire.peer_messages import StreamHello
from ringhaul.wire.records import Address
from ringhaul.wire.session_messages import Heartbeat, Resume

#: Whoever sends garbage, or nothing, has to be rid of within this: the handshake's time, the
#: first frame's on its way through the network process, and some for a busy machine.
CLOSED_WITHIN_S = 2 * limits.HANDSHAKE_S + 10.0
_CONNECT_S = 5.0
#: Connections of one crowd.
_CROWD = 40

KINDS = (
    "noise", "http", "length", "zero", "half", "silence", "crowd", "stranger", "resume", "stream",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sent:
    """Garbage that was sent, and how that ended; `problem` is None if it was as it should."""

    kind: str
    address: str
    problem: str | None


def make(kind: str, dice: random.Random, peer_id: str) -> bytes:
    """The bytes of one kind of garbage; `peer_id` is of a peer that lives."""
    noise = dice.randbytes(dice.choice((1, 3, 4, 100, 5000, 70_000)))
    token = dice.randbytes(16)
    match kind:
        case "http":
            return b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        case "length":
            return struct.pack("!I", dice.choice((2**32 - 1, 2**31, limits.FRAME_BYTES_MAX + 1)))
        case "zero":
            return bytes(dice.choice((4, 100, 4096)))
        case "half":
            message = Heartbeat(ping=7)
            return frame(encode(Envelope(message=message)))[: dice.randint(1, 20)]
        case "silence" | "crowd":
            return b""
        case "stranger":
            finished = Finished(generation=Generation(1), key=OpKey(None, 0), digest=token)
            return frame(encode(Envelope(message=finished, run_id=token, incarnation=1, seq=1)))
        case "resume":
            resume = Resume(
                version=limits.PROTOCOL_VERSION,
                peer=PeerId(peer_id),
                secret=token,
                group=0,
                addresses=(Address("127.0.0.1", 1),),
                min_world_size=1,
            )
            return frame(encode(Envelope(message=resume, run_id=token)))
        case "stream":
            hello = StreamHello(
                version=limits.PROTOCOL_VERSION,
                dialler=PeerId("nobody-000000"),
                acceptor=PeerId(peer_id),
                challenge=token,
                stream_index=0,
                stream_count=1,
                link_number=1,
            )
            return frame(encode(Envelope(message=hello, run_id=token)))
        case _:
            return noise


def throw(
    kind: str,
    address: str,
    dice: random.Random,
    peer_id: str,
    report: Callable[[Sent], None],
    closed_within_s: float = CLOSED_WITHIN_S,
) -> None:
    """Send garbage of one kind to an address, in a thread; `report` what came of it."""
    data = make(kind, dice, peer_id)
    count = _CROWD if kind == "crowd" else 1
    for index in range(count):
        thread = threading.Thread(
            target=_throw_one,
            args=(kind, address, data, report if index == 0 else _ignore, closed_within_s),
            daemon=True,
        )
        thread.start()


def _ignore(sent: Sent) -> None:
    """Of a crowd one is looked at."""


def _throw_one(
    kind: str, address: str, data: bytes, report: Callable[[Sent], None], closed_within_s: float
) -> None:
    host, _, port = address.rpartition(":")
    began_at = time.monotonic()
    problem: str | None = None
    try:
        with socket.create_connection((host, int(port)), _CONNECT_S) as sock:
            sock.sendall(data)
            sock.settimeout(closed_within_s)
            while sock.recv(65536):  # a reason may come before the end
                left_s = began_at + closed_within_s - time.monotonic()
                sock.settimeout(max(left_s, 0.001))
    except TimeoutError:
        waited_s = time.monotonic() - began_at
        problem = f"{kind} garbage at {address}: the connection is open after {waited_s:.0f} s"
    except OSError:
        pass  # refused or reset: its owner is gone, or would not have it
    report(Sent(kind, address, problem))
