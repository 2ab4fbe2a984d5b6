"""Checks of what users pass, before any byte is sent: each refusal says what to do."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringhaul import limits
from ringhaul.ids import BATCH_TAG, OnLoss, ReduceOp
from ringhaul.io.address import parse_address

#: Operations of one `all_reduce_many` in flight: after an error so many keys are given up.
MANY_IN_FLIGHT_MAX = 256


def parse_advertised(advertise: Sequence[str]) -> tuple[tuple[str, int | None], ...]:
    """Where others may reach this peer; None for the port it listens at."""
    if isinstance(advertise, str):
        raise TypeError("advertise is a list of addresses, not one string")
    found: list[tuple[str, int | None]] = []
    for text in advertise:
        host, port = parse_address(text, 0)
        if not host:
            raise ValueError(f"advertise: {text!r} names no host")
        found.append((host, port or None))
    return tuple(found)


def check_connect(group: int, streams: int | None, name: str | None, min_world: int) -> None:
    if not 0 <= group < 2**32:
        raise ValueError(f"group is a number from 0 to 2**32 - 1, not {group}")
    if streams is not None and not 1 <= streams <= limits.STREAMS_MAX:
        raise ValueError(f"streams is from 1 to {limits.STREAMS_MAX}, or None; not {streams}")
    if not 1 <= min_world <= limits.PEERS_MAX:
        raise ValueError(f"min_world_size is from 1 to {limits.PEERS_MAX}, not {min_world}")
    if name is not None and (
        not name or len(name) > limits.NAME_LENGTH_MAX or not name.isprintable()
    ):
        raise ValueError(f"name has 1 to {limits.NAME_LENGTH_MAX} printable characters")


def parse_op(op: str | ReduceOp) -> ReduceOp:
    try:
        return ReduceOp(op)
    except ValueError:
        names = ", ".join(repr(known.value) for known in ReduceOp)
        raise ValueError(f"op is one of {names}, not {op!r}") from None


def parse_on_loss(on_loss: str) -> OnLoss:
    try:
        return OnLoss(on_loss)
    except ValueError:
        raise ValueError(f'on_loss is "retry" or "raise", not {on_loss!r}') from None


def check_timeout(timeout_s: float | None, what: str = "timeout_s") -> None:
    if timeout_s is not None and not timeout_s > 0:
        raise ValueError(f"{what} is a number of seconds above 0, or None; not {timeout_s!r}")


def check_tag(tag: str | None) -> None:
    if tag is None:
        return
    if not isinstance(tag, str):
        raise TypeError(f"tag is a string, not a {type(tag).__name__}")
    if len(tag) > limits.TAG_LENGTH_MAX or not tag.isprintable():
        raise ValueError(f"tag has at most {limits.TAG_LENGTH_MAX} characters, all printable")
    if tag.startswith(BATCH_TAG):
        raise ValueError(f"tags that begin with {BATCH_TAG!r} are the library's own")


def check_out(array: NDArray[Any], out: NDArray[Any]) -> None:
    if out.dtype != array.dtype or out.shape != array.shape:
        raise ValueError(
            f"out has shape {out.shape} and dtype {out.dtype}, array has {array.shape} and "
            f"{array.dtype}: they have to be equal"
        )
    if np.may_share_memory(array, out):
        raise ValueError("out shares memory with array: leave out= away to reduce in place")


def check_max_in_flight(count: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"max_in_flight is a number, not a {type(count).__name__}")
    if not 1 <= count <= MANY_IN_FLIGHT_MAX:
        raise ValueError(f"max_in_flight is from 1 to {MANY_IN_FLIGHT_MAX}, not {count}")
