"""The exceptions, whose fault each is, and what to do next.

Users catch `RinghaulError` or one of its public subclasses. `ProtocolError` and
`InvariantError` are internal: the first closes a connection, the second is our bug.
"""

from collections.abc import Sequence
from typing import Any


class RinghaulError(Exception):
    """Base of all errors of this library. Facts are attributes, None where they do not apply.

    Attributes:
        generation: number of the membership that it is about.
        tag: of the operation.
        peers: who is at fault, or was missing, by peer id; empty if nobody is.
        phase: how far the operation was on this peer: "moving data", "waiting for the others
            to finish", "waiting for a new ring", "waiting for the election", "admit".
        seconds: from the call to the error, or what was waited for.
        wire_bytes: tensor bytes that this peer sent and received for it, over all attempts.
    """

    def __init__(
        self,
        message: str,
        *,
        generation: int | None = None,
        tag: str | None = None,
        peers: Sequence[str] = (),
        phase: str | None = None,
        seconds: float | None = None,
        wire_bytes: int | None = None,
    ) -> None:
        super().__init__(message)
        self.generation = generation
        self.tag = tag
        self.peers = tuple(peers)
        self.phase = phase
        self.seconds = seconds
        self.wire_bytes = wire_bytes
        #: Of `all_reduce_many`: for each array its `ReduceInfo`, None if it is not reduced.
        self.infos: Sequence[Any] = ()


class ConnectError(RinghaulError):
    """This peer did not become a member.

    The coordinator was unreachable, refused it, or no member could reach it in time. The
    message says which, with the addresses tried. Correct the address or open the port, and
    connect again.
    """


class CollectiveAborted(RinghaulError):
    """A member was lost, or too few are left; nobody got a result. The array is as before.

    With `on_loss="raise"`: call again, the next generation is open. Below
    `min_world_size`: call `admit`, which waits until enough peers are there.
    """


class MismatchError(RinghaulError):
    """The members called different things; both are named. Nobody got a result.

    A bug of the program: correct it. Calling again does not help.
    """


class EvictedError(RinghaulError):
    """The coordinator dropped this peer; the message says why. The communicator is closed.

    The outcome of the open call is unknown. Connect again, as a new peer, and sync the state.
    """


class CallTimeout(RinghaulError, TimeoutError):
    """`timeout_s` of some member passed; nobody got a result. `peers` names who was missing.

    The array is as before the call. Call again, on all members, with more time.
    """


class CodecError(RinghaulError, ValueError):
    """A lossy codec cannot carry a value of some member: NaN, infinity, or beyond its range.

    Nobody got a result; the array is as before. The message names the member, the element and
    the value. Correct the array (gradients often overflow one step before they are noticed),
    or use codec "raw", which carries whatever there is. Or a `Codec` of the program's own has
    raised an exception, which the message names: correct the codec.
    """


class StateError(RinghaulError):
    """No peer holds a state that may be elected, or revisions do not follow on each other.

    Load a checkpoint on one peer, or correct `state.revision`, and sync again.
    """


class CoordinatorLost(RinghaulError):
    """The coordinator was away for longer than the grace. The communicator is closed.

    The outcome of the open call is unknown. Start the coordinator, then connect again.
    """


class JournalError(RinghaulError):
    """The coordinator's journal is in use, foreign, damaged, or cannot be written.

    The message says which. Stop the other coordinator, or name another file.
    """


class WireError(RinghaulError):
    """Bytes arrived that are no message. The connection that sent them is closed."""


class ClosedError(RinghaulError):
    """The communicator is closed: by `close`, by an earlier error, or at interpreter exit."""


class ProtocolError(Exception):
    """A peer sent a valid message that it may not send now. Its connection is closed."""


class InvariantError(AssertionError):
    """A bug of ringhaul. Please report it with the story: the last steps of the machine."""

    def __init__(self, broken: str, story: Sequence[str]) -> None:
        super().__init__(broken + "\n" + "\n".join(story))
        self.broken = broken
        self.story = tuple(story)
