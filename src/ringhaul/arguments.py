"""Checks of what users pass, before any byte is sent: each refusal says what to do."""

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from ringhaul import limits
from ringhaul.ids import BATCH_TAG, OnLoss, ReduceOp
from ringhaul.io.address import parse_address

#: Operations of one `all_reduce_many` in flight: after an error so many keys are given up.
MANY_IN_FLIGHT_MAX = 256


def parse_integer(value: SupportsIndex, what: str) -> int:
    """A whole number of any kind, also NumPy's; nothing that would have to be rounded."""
    if not isinstance(value, (bool, np.bool_)):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{what} is a whole number, not {value!r:.80}")


def check_text(text: object, what: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{what} is a string, not {text!r:.80}")


def parse_advertised(advertise: Sequence[str]) -> tuple[tuple[str, int | None], ...]:
    """Where others may reach this peer; None for the port it listens at."""
    if isinstance(advertise, (str, bytes)) or not isinstance(advertise, Sequence):
        raise TypeError(f"advertise is a list of addresses, not {advertise!r:.80}")
    found: list[tuple[str, int | None]] = []
    for text in advertise:
        check_text(text, "an address of advertise")
        host, port = parse_address(text, 0)
        if not host:
            raise ValueError(f"advertise: {text!r} names no host")
        found.append((host, port or None))
    return tuple(found)


def parse_group(group: SupportsIndex) -> int:
    number = parse_integer(group, "group")
    if not 0 <= number < 2**32:
        raise ValueError(f"group is a number from 0 to 2**32 - 1, not {number}")
    return number


def parse_streams(streams: SupportsIndex | None) -> int | None:
    if streams is None:
        return None
    count = parse_integer(streams, "streams")
    if not 1 <= count <= limits.STREAMS_MAX:
        raise ValueError(f"streams is from 1 to {limits.STREAMS_MAX}, or None; not {count}")
    return count


def parse_min_world_size(min_world_size: SupportsIndex) -> int:
    count = parse_integer(min_world_size, "min_world_size")
    if not 1 <= count <= limits.PEERS_MAX:
        raise ValueError(f"min_world_size is from 1 to {limits.PEERS_MAX}, not {count}")
    return count


def check_name(name: str | None) -> None:
    if name is None:
        return
    check_text(name, "name")
    if not name or len(name) > limits.NAME_LENGTH_MAX or not name.isprintable():
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


def check_number(value: float | None, what: str) -> None:
    if value is None:
        return
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(f"{what} is a number, or None; not {value!r:.80}")


def check_timeout(timeout_s: float | None, what: str = "timeout_s") -> None:
    check_number(timeout_s, what)
    try:
        is_sound = timeout_s is None or float(timeout_s) > 0
    except OverflowError:
        is_sound = False
    if not is_sound:
        raise ValueError(f"{what} is a number of seconds above 0, or None; not {timeout_s!r:.80}")


def check_tag(tag: str | None) -> None:
    if tag is None:
        return
    check_text(tag, "tag")
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


def parse_max_in_flight(max_in_flight: SupportsIndex) -> int:
    count = parse_integer(max_in_flight, "max_in_flight")
    if not 1 <= count <= MANY_IN_FLIGHT_MAX:
        raise ValueError(f"max_in_flight is from 1 to {MANY_IN_FLIGHT_MAX}, not {count}")
    return count


def parse_inner_steps(inner_steps: SupportsIndex) -> int:
    count = parse_integer(inner_steps, "inner_steps")
    if count < 1:
        raise ValueError(f"inner_steps is {count}; it has to be 1 or more")
    return count
