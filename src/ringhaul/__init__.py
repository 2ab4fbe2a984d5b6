"""Fault-tolerant collective communication over the public internet."""

from ringhaul.communicator import Communicator
from ringhaul.errors import (
    CallTimeout,
    ClosedError,
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
from ringhaul.results import Membership, ReduceInfo, SyncInfo
from ringhaul.state.shared import SharedState
from ringhaul.work import Work

__version__ = "0.1.0"

__all__ = [
    "CallTimeout",
    "ClosedError",
    "CollectiveAborted",
    "Communicator",
    "ConnectError",
    "CoordinatorLost",
    "EvictedError",
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
]
