"""One side of a control session: numbers messages, keeps them until acknowledged.

A session outlives its connections. Whoever resumes names the last message it has; the other
side sends the rest again, with the same numbers, and duplicates are ignored.
"""

from collections import deque

from ringhaul.errors import ProtocolError
from ringhaul.limits import UNACKNOWLEDGED_MAX
from ringhaul.wire.codec import Envelope
from ringhaul.wire.message import Message


class Session:
    """Numbers of one direction out and of the other in."""

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self._unacknowledged: deque[tuple[int, Message]] = deque()

    @property
    def is_overdue(self) -> bool:
        """The other side left so many messages unacknowledged that it is gone."""
        return len(self._unacknowledged) > UNACKNOWLEDGED_MAX

    def number(self, message: Message) -> int:
        """Give the next number to a message and keep it."""
        self.sent += 1
        self._unacknowledged.append((self.sent, message))
        return self.sent

    def unacknowledged(self) -> list[tuple[int, Message]]:
        """What has to be sent again when the session is resumed."""
        return list(self._unacknowledged)

    def first_unacknowledged(self, kinds: tuple[type[Message], ...]) -> Message | None:
        """The oldest message of these classes that the other side may not have."""
        return next((m for _, m in self._unacknowledged if isinstance(m, kinds)), None)

    def take(self, envelope: Envelope) -> bool:
        """Note the numbers of a message that arrived; tell whether it is to be handled.

        Raises:
            ProtocolError: it skips a number, or acknowledges what was never sent.
        """
        if envelope.ack > self.sent:
            raise ProtocolError(f"acknowledges {envelope.ack}, sent were {self.sent}")
        if envelope.seq > self.received + 1:
            raise ProtocolError(f"message {envelope.seq} follows {self.received}")
        while self._unacknowledged and self._unacknowledged[0][0] <= envelope.ack:
            self._unacknowledged.popleft()
        if envelope.seq == 0:
            return True
        is_new = envelope.seq == self.received + 1
        self.received = max(self.received, envelope.seq)
        return is_new
