"""What anybody may ask the coordinator for, without a session: how the run is doing.

Read-only, and bounded: a report names the first of what there is too much of, and the totals.
It holds no secret, no token and no address.
"""

import enum
from dataclasses import dataclass
from typing import Annotated

from ringhaul.ids import Generation, PeerId
from ringhaul.limits import (
    STATUS_EVENTS_MAX,
    STATUS_GROUPS_MAX,
    STATUS_NAMES_MAX,
    STATUS_OPERATIONS_MAX,
    STATUS_PEERS_MAX,
    STATUS_TEXT_MAX,
)
from ringhaul.wire.fields import (
    one_of,
    optional,
    peer_id,
    record_of,
    seconds,
    text_up_to,
    tuple_of,
    uint,
)
from ringhaul.wire.message import Message, message
from ringhaul.wire.session_messages import group_number

status_text = text_up_to(STATUS_TEXT_MAX)
_names = tuple_of(peer_id, max_len=STATUS_NAMES_MAX)


@message(kind=60)
@dataclass(frozen=True, slots=True, kw_only=True)
class StatusRequest(Message):
    """Anybody -> coordinator, first on a new connection: how is the run doing?"""

    version: Annotated[int, uint]


class PeerState(enum.Enum):
    """What a peer is, as `ringhaul status` shows it."""

    MEMBER = "member"
    PENDING = "pending"
    #: Its control connection is closed; it may resume its session within the grace.
    AWAY = "away"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """One peer."""

    #: Its name is the first part.
    peer: Annotated[PeerId, peer_id]
    group: Annotated[int, group_number]
    state: Annotated[PeerState, one_of(PeerState)]
    #: In the open generation of its group; None if it is not in the ring.
    rank: Annotated[int | None, optional(uint)]
    #: How long it has been a member, or has waited to be one.
    since_s: Annotated[float, seconds]
    #: Since anything was heard of it.
    heard_s: Annotated[float, seconds]
    #: What it waits for, and whom; empty if for nothing.
    waits_for: Annotated[str, status_text]
    #: Payload sent to the next rank, by its last heartbeat; None where it has not said.
    outgoing_bytes_per_s: Annotated[int | None, optional(uint)]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """One group. Its ring order follows from the ranks of its peers."""

    group: Annotated[int, group_number]
    generation: Annotated[Generation, uint]
    world_size: Annotated[int, uint]
    #: Why another generation is being opened, and whose links are missing; empty if none is.
    opening: Annotated[str, status_text]
    unusable_pairs: Annotated[int, uint]
    #: Of the last committed `sync_state`; None before the first.
    revision: Annotated[int | None, optional(uint)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationStatus:
    """One open operation."""

    group: Annotated[int, group_number]
    key: Annotated[str, status_text]
    call: Annotated[str, status_text]
    since_s: Annotated[float, seconds]
    began_count: Annotated[int, uint]
    finished_count: Annotated[int, uint]
    #: Who has not, the first of them.
    not_begun: Annotated[tuple[PeerId, ...], _names]
    not_finished: Annotated[tuple[PeerId, ...], _names]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventStatus:
    """Something that happened."""

    age_s: Annotated[float, seconds]
    text: Annotated[str, status_text]


@message(kind=61)
@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport(Message):
    """Coordinator -> whoever asked: all that is to be seen. The connection is then closed."""

    #: Since this coordinator was started.
    uptime_s: Annotated[float, seconds]
    peer_count: Annotated[int, uint]
    pending_count: Annotated[int, uint]
    group_count: Annotated[int, uint]
    operation_count: Annotated[int, uint]
    groups: Annotated[
        tuple[GroupStatus, ...], tuple_of(record_of(GroupStatus), max_len=STATUS_GROUPS_MAX)
    ]
    #: By group, members by rank, then the others in the order in which they came.
    peers: Annotated[
        tuple[PeerStatus, ...], tuple_of(record_of(PeerStatus), max_len=STATUS_PEERS_MAX)
    ]
    #: The oldest first.
    operations: Annotated[
        tuple[OperationStatus, ...],
        tuple_of(record_of(OperationStatus), max_len=STATUS_OPERATIONS_MAX),
    ]
    #: The newest last.
    events: Annotated[
        tuple[EventStatus, ...], tuple_of(record_of(EventStatus), max_len=STATUS_EVENTS_MAX)
    ]
