"""Events and effects of the peer's machine, and what a call results in."""

from dataclasses import dataclass, field

from ringhaul.core.steps import Close, LinkLost, Log, Received, Send, Tick
from ringhaul.errors import RinghaulError
from ringhaul.ids import CallId, Generation, LinkId, OpKey, PeerId, Rank
from ringhaul.wire.coordinator_messages import Outcome, Proposal, SyncPlan
from ringhaul.wire.records import Counts, Signature, StateReport


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The membership as a verdict names it; what the caller sees after the call."""

    generation: Generation
    ring_order: tuple[PeerId, ...]
    counts: Counts
    joined: tuple[PeerId, ...] = ()
    #: In the order in which this peer heard of them, which is the coordinator's.
    index: int = field(default=0, compare=False)


# -- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The runner is ready: its listener is open."""


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connection to the coordinator is up."""

    link: LinkId


@dataclass(frozen=True, slots=True)
class DialFailed:
    """The coordinator could not be reached."""

    reason: str


@dataclass(frozen=True, slots=True)
class AdmitCalled:
    """The caller is in `admit`."""

    call: CallId
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveCalled:
    """The caller is in a collective, whose arguments are checked."""

    call: CallId
    tag: str | None
    signature: Signature
    state: StateReport | None = None
    timeout_s: float | None = None
    #: Its place in a batch, which is one call of many operations, made in their order.
    batch_index: int | None = None


@dataclass(frozen=True, slots=True)
class CallGivenUp:
    """The caller was interrupted, or cannot do its part."""

    call: CallId
    outcome: Outcome
    detail: str


@dataclass(frozen=True, slots=True)
class BatchFailed:
    """The caller makes no more operations of its batch: nobody shall wait for it in them.

    Those from index `first` on, at most `count`, may have been begun by others.
    """

    first: int
    count: int
    detail: str


@dataclass(frozen=True, slots=True)
class CloseCalled:
    """The caller leaves."""


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The link to the next rank of this proposal is up, proved from both ends."""

    generation: Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkBroken:
    """The link with a neighbour could not be made, or broke."""

    neighbour: PeerId
    refused: bool
    reason: str


@dataclass(frozen=True, slots=True)
class LinkMeasured:
    """What goes to the next rank, as of late: for the coordinator's status."""

    outgoing_bytes_per_s: int | None


@dataclass(frozen=True, slots=True)
class TransferDone:
    """All data of a call's attempt is here."""

    call: CallId
    generation: Generation
    digest: bytes | None = None


Event = (
    Started
    | Dialled
    | DialFailed
    | Received
    | LinkLost
    | Tick
    | AdmitCalled
    | CollectiveCalled
    | CallGivenUp
    | BatchFailed
    | CloseCalled
    | LinkUp
    | LinkBroken
    | LinkMeasured
    | TransferDone
)

# -- effects ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to the coordinator; answer `Dialled` or `DialFailed`."""


@dataclass(frozen=True, slots=True)
class MakeLinks:
    """Dial the next rank, expect the previous; answer `LinkUp` or `LinkBroken`."""

    proposal: Proposal


@dataclass(frozen=True, slots=True)
class UseRing:
    """This generation is open: its data may be read, older data is dropped."""

    generation: Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginTransfer:
    """Move the data of a call around the ring; answer `TransferDone`."""

    call: CallId
    key: OpKey
    generation: Generation
    rank: Rank
    world_size: int
    #: Where the root of a broadcast stands in this generation.
    root: Rank | None = None


@dataclass(frozen=True, slots=True)
class DropTransfer:
    """An attempt ended without result: let go of the caller's memory, keep its input."""

    call: CallId


@dataclass(frozen=True, slots=True)
class ForgetKey:
    """An operation failed for all: throw away what came of its data, and what comes yet."""

    key: OpKey


@dataclass(frozen=True, slots=True)
class FollowSyncPlan:
    """Fetch the elected state, or serve it; answer `TransferDone` once it is here."""

    call: CallId
    plan: SyncPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """A call ended well: hand over its result."""

    call: CallId
    view: View
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Fail:
    """A call ended with an error. `view` is what the caller sees now, if it changed."""

    call: CallId
    error: RinghaulError
    view: View | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    """This peer is a member now: `connect` returns."""

    view: View


@dataclass(frozen=True, slots=True)
class Stop:
    """It is over: close everything. `error` says why, None if the caller wanted it."""

    error: RinghaulError | None


Effect = (
    Dial
    | Send
    | Close
    | Log
    | MakeLinks
    | UseRing
    | BeginTransfer
    | DropTransfer
    | ForgetKey
    | FollowSyncPlan
    | Complete
    | Fail
    | Joined
    | Stop
)
