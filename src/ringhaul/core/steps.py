"""Events and effects that both machines share. Decides nothing."""

from dataclasses import dataclass
from typing import NamedTuple

from ringhaul.ids import LinkId
from ringhaul.wire.codec import Envelope


class Received(NamedTuple):
    """Event: a message arrived on a control connection."""

    link: LinkId
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class LinkLost:
    """Event: a control connection ended, or sent something that is no message."""

    link: LinkId
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Event: the deadline that `next_deadline` named has come."""


class Send(NamedTuple):
    """Effect: send a message on a control connection; never waits."""

    link: LinkId
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Close:
    """Effect: close a control connection once all that was sent before is out."""

    link: LinkId
    reason: str


@dataclass(frozen=True, slots=True)
class Log:
    """Effect: tell the operator. `important` is for the INFO level, else DEBUG."""

    text: str
    important: bool = True
    #: Also for who has set up no logging: the WARNING level.
    urgent: bool = False
    #: What it is about, for structured logs: names and values.
    facts: tuple[tuple[str, str | int], ...] = ()
