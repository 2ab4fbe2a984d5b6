"""What the effects of a step mean for a small world: messages become numbers."""

from collections.abc import Hashable
from dataclasses import dataclass, replace

from ringhaul.core.coordinator.model import Effect as CoordinatorEffect
from ringhaul.core.coordinator.model import Forget, Save
from ringhaul.core.peer.steps import (
    BeginTransfer,
    Complete,
    Dial,
    DropTransfer,
    Fail,
    FollowSyncPlan,
    ForgetKey,
    Joined,
    MakeLinks,
    Stop,
    UseRing,
)
from ringhaul.core.peer.steps import Effect as PeerEffect
from ringhaul.core.steps import Close, Log, Send
from ringhaul.ids import LinkId
from ringhaul.testing.explore.cells import Names
from ringhaul.wire.codec import Envelope
from ringhaul.wire.session_messages import Heartbeat


@dataclass(frozen=True, slots=True)
class Sent:
    """A message goes out."""

    link: LinkId
    message: int
    is_heartbeat: bool


Op = (
    Sent | Close | Log | Dial | MakeLinks | BeginTransfer | DropTransfer | Joined | Complete
    | Fail | Stop
)  # fmt: skip


class Teller:
    """Turns effects into operations, and names the messages.

    Unless `acks` is set, only heartbeats and resumptions acknowledge messages: otherwise what
    crosses what makes states differ in nothing but what would be sent again, for nothing.
    """

    def __init__(self, *, acks: bool) -> None:
        self._acks = acks
        self._messages: Names[Hashable] = Names()

    def envelope(self, message: int) -> Envelope:
        """The message that has this name."""
        envelope = self._messages.values[message]
        assert isinstance(envelope, Envelope)
        return envelope

    def told(self, effects: list[PeerEffect | CoordinatorEffect]) -> tuple[Op, ...]:
        """What the world does about a step."""
        ops: list[Op] = []
        for effect in effects:
            match effect:
                case Send(link, envelope):
                    match envelope.message:
                        case Heartbeat(ping=0, pong=0):
                            is_heartbeat = True
                        case _:
                            is_heartbeat = False
                    if envelope.seq and not self._acks:
                        envelope = replace(envelope, ack=0)
                    number = self._messages.number(envelope)
                    ops.append(Sent(link, number, is_heartbeat))
                case UseRing() | ForgetKey() | Save() | Forget():
                    pass  # stale data are not looked at, and the coordinator does not die
                case FollowSyncPlan():
                    raise NotImplementedError("sync_state is not part of these worlds")
                case _:
                    ops.append(effect)
        return tuple(ops)
