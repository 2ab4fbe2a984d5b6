"""Message <-> bytes. The only import of msgpack.

An envelope is the list `[kind, run_id, incarnation, seq, ack, *fields]`. `decode` promises
an `Envelope` or `WireError`, nothing else, whatever the bytes.
"""

from dataclasses import dataclass

import msgpack

from ringhaul.errors import WireError
from ringhaul.limits import FRAME_BYTES_MAX
from ringhaul.wire import coordinator_messages, peer_messages, session_messages, status_messages
from ringhaul.wire.fields import blob, plain, read_record, shown, uint, values_of
from ringhaul.wire.message import MESSAGES, Message

#: Importing them registers their messages.
_ROOMS = (coordinator_messages, peer_messages, session_messages, status_messages)
_HEAD_LENGTH = 5
#: First on a connection, and their first field is the version.
_OPENING_KINDS = {
    cls.KIND
    for cls in (
        session_messages.Hello,
        session_messages.Resume,
        peer_messages.StreamHello,
        peer_messages.StateRequest,
        status_messages.StatusRequest,
    )
}
_read_run_id = blob(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message and what every message carries.

    Attributes:
        run_id: 16 bytes, the run it belongs to; zeros before it is known.
        incarnation: of the coordinator: higher at each of its starts; 0 before it is known.
        seq: the message's number in its session and direction, from 1; 0 if unnumbered.
        ack: the highest number received the other way.
    """

    message: Message
    run_id: bytes = bytes(16)
    incarnation: int = 0
    seq: int = 0
    ack: int = 0


def encode(envelope: Envelope) -> bytes:
    """Pack an envelope.

    Raises:
        WireError: the message is longer than `FRAME_BYTES_MAX`, or a text in it is not
            Unicode (half a surrogate pair).
    """
    message = envelope.message
    head = [message.KIND, envelope.run_id, envelope.incarnation, envelope.seq, envelope.ack]
    try:
        data: bytes = msgpack.packb(head + values_of(message), default=plain)
    except UnicodeEncodeError as error:
        raise WireError(f"{type(message).__name__}: {error}") from None
    if len(data) > FRAME_BYTES_MAX:
        raise WireError(f"{type(message).__name__} of {len(data)} bytes is too long")
    return data


def decode(data: bytes) -> Envelope:
    """Unpack an envelope.

    Raises:
        WireError: `data` is no message of this protocol; says in which field.
    """
    try:
        values = msgpack.unpackb(data, strict_map_key=True, max_ext_len=0)
    except Exception as error:  # msgpack raises many kinds, documented and not
        raise WireError(f"not msgpack: {type(error).__name__}: {error}") from None
    if type(values) is not list or len(values) < _HEAD_LENGTH:
        raise WireError("not an envelope")
    kind, run_id, incarnation, seq, ack = values[:_HEAD_LENGTH]
    if type(kind) is not int or kind not in MESSAGES:
        raise WireError(f"unknown kind of message: {shown(kind)}")
    fields = values[_HEAD_LENGTH:]
    if kind in _OPENING_KINDS:
        session_messages.check_version(fields)
    return Envelope(
        message=read_record(MESSAGES[kind], fields),
        run_id=_read_run_id(run_id),
        incarnation=uint(incarnation),
        seq=uint(seq),
        ack=uint(ack),
    )
