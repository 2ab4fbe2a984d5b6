"""Fault-tolerant collective communication over the public internet."""

from ringhaul.communicator import Communicator
from ringhaul.errors import (
    CallTimeout,
    ClosedError,
    CodecError,
    CollectiveAborted,
    ConnectError,
    CoordinatorLost,
    EvictedError,
    MismatchError,
    RinghaulError,
    StateError,
    WireError,
)
from ringhaul.ids import ReduceOp
from ringhaul.joining import connect
from ringhaul.quant import Codec, ErrorFeedback, register_codec
from ringhaul.results import MeasuredError, Membership, ReduceInfo, SyncInfo
from ringhaul.state.shared import SharedState
from ringhaul.work import Work

__version__ = "0.1.0"

__all__ = [
    "CallTimeout",
    "ClosedError",
    "Codec",
    "CodecError",
    "CollectiveAborted",
    "Communicator",
    "ConnectError",
    "CoordinatorLost",
    "ErrorFeedback",
    "EvictedError",
    "MeasuredError",
    "Membership",
    "MismatchError",
    "ReduceInfo",
    "ReduceOp",
    "RinghaulError",
    "SharedState",
    "StateError",
    "SyncInfo",
    "WireError",
    "Work",
    "connect",
    "register_codec",
]
