"""Checks of what users pass, before any byte is sent: each refusal says what to do."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringhaul import limits
from ringhaul.ids import OnLoss, ReduceOp
from ringhaul.io.address import parse_address
from ringhaul.ring.reduce import dtype_name


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


def flat_view(array: object, what: str, *, writable: bool) -> NDArray[Any]:
    """The array as one dimension, never a copy; refuses what would need one."""
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{what} is a NumPy array, not a {type(array).__name__}")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{what} is not C-contiguous (shape {array.shape}, strides {array.strides}): pass "
            "np.ascontiguousarray of it, and copy the result back if you need it in place"
        )
    if writable and not array.flags.writeable:
        raise ValueError(f"{what} is read-only: pass a writable copy, or give out=")
    dtype_name(array.dtype)
    return np.asarray(array).reshape(-1)  # a matrix would stay of two dimensions


def check_out(array: NDArray[Any], out: NDArray[Any]) -> None:
    if out.dtype != array.dtype or out.shape != array.shape:
        raise ValueError(
            f"out has shape {out.shape} and dtype {out.dtype}, array has {array.shape} and "
            f"{array.dtype}: they have to be equal"
        )
    if np.may_share_memory(array, out):
        raise ValueError("out shares memory with array: leave out= away to reduce in place")
