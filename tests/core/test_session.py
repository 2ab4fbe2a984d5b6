"""Numbered messages: once each, in order, kept until the other side has them."""

import pytest

from ringhaul.core.session import Session
from ringhaul.errors import ProtocolError
from ringhaul.wire.codec import Envelope
from ringhaul.wire.session_messages import Heartbeat, Leave


def numbered(seq: int, *, ack: int = 0) -> Envelope:
    return Envelope(message=Leave(), seq=seq, ack=ack)


def test_a_message_that_comes_twice_is_handled_once() -> None:
    session = Session()

    assert session.take(numbered(1))
    assert not session.take(numbered(1))
    assert session.take(numbered(2))
    assert not session.take(numbered(1))
    assert session.received == 2


def test_a_message_without_number_is_handled_whenever_it_comes() -> None:
    session = Session()
    session.take(numbered(1))

    assert session.take(Envelope(message=Heartbeat()))
    assert session.received == 1


def test_a_skipped_number_is_refused_and_changes_nothing() -> None:
    session = Session()
    session.number(Leave())

    with pytest.raises(ProtocolError, match="message 2 follows 0"):
        session.take(numbered(2, ack=1))

    assert session.received == 0
    assert [seq for seq, _ in session.unacknowledged()] == [1]


def test_an_acknowledgement_of_what_was_never_sent_is_refused() -> None:
    session = Session()
    session.number(Leave())

    with pytest.raises(ProtocolError, match="acknowledges 2"):
        session.take(numbered(1, ack=2))


def test_what_is_acknowledged_is_forgotten_and_nothing_else() -> None:
    session = Session()
    for _ in range(3):
        session.number(Leave())

    session.take(numbered(0, ack=2))

    assert [seq for seq, _ in session.unacknowledged()] == [3]
