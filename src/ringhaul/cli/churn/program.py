"""The program that all members run: which calls a round makes, and what is right.

Everything follows from (seed, round, call, peer number), so that a result can be computed by
whoever knows its contributors. Contributions are small integers: sums are exact in whatever
order they are taken. A contribution is one number of the peer, the round and the call, plus a
pattern that says where an element belongs.
"""

import enum
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ringhaul.quant import find_codec
from ringhaul.state.digest import byte_view

Array = NDArray[Any]

#: The part of a contribution that says whose it is: below this.
_BASE_END = 1 << 16
#: The part that says where it stands: a prime, so that no power of two is a multiple of it.
_PATTERN_END = 8191
#: The same where values are rounded: half precision has to carry any sum.
_LOSSY_BASE_END = 256
_LOSSY_PATTERN_END = 127
#: Blocks of calls in a round.
_BLOCKS_MIN, _BLOCKS_MAX = 2, 4
#: Arrays of one `all_reduce_many`.
_MANY_ARRAYS = 12
#: Between two encodings, of the largest value: rounding in float32.
_FLOAT32_ERROR = 4 * 2.0**-24


class Kind(enum.Enum):
    """Which call."""

    ALL_REDUCE = "all_reduce"
    ASYNC = "all_reduce_async"
    MANY = "all_reduce_many"
    BROADCAST = "broadcast"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    BARRIER = "barrier"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of a round; `index` counts them."""

    round: int
    index: int
    kind: Kind
    op: str = "sum"
    dtype: str = "float32"
    count: int = 0
    codec: str = "raw"
    has_out: bool = False
    on_loss: str = "retry"
    tag: str | None = None

    @property
    def is_lossy(self) -> bool:
        """Are results off by up to `bound`?"""
        return self.kind is not Kind.BARRIER and find_codec(self.codec).is_lossy


@dataclass(frozen=True, slots=True)
class Block:
    """Operations that are in flight together, or one of them alone.

    `straddles`: they are begun before the next round's `admit` and waited for after it.
    """

    operations: tuple[Operation, ...]
    straddles: bool = False


class Program:
    """The calls of every round of a run."""

    def __init__(self, *, seed: int, element_count: int, concurrent: int, codec: str) -> None:
        self._seed = seed
        self._element_count = element_count
        self._concurrent = concurrent
        self._codec = codec

    def blocks(self, round_: int) -> list[Block]:
        """What a round calls between its `sync_state` and the next `admit`, in this order."""
        dice = random.Random(f"{self._seed}/{round_}")
        kinds = dice.choices(list(Kind), k=dice.randint(_BLOCKS_MIN, _BLOCKS_MAX))
        blocks: list[Block] = []
        index = 0
        for place, kind in enumerate(kinds):
            size = {Kind.ASYNC: self._concurrent, Kind.MANY: _MANY_ARRAYS}.get(kind, 1)
            straddles = kind is Kind.ASYNC and place == len(kinds) - 1
            codec = self._codec if dice.random() < 0.5 else "raw"
            operations = tuple(
                self._operation(dice, round_, index + k, kind, codec, is_tagged=k % 2 == 1)
                for k in range(size)
            )
            index += size
            blocks.append(Block(operations, straddles))
        return blocks

    def _operation(
        self,
        dice: random.Random,
        round_: int,
        index: int,
        kind: Kind,
        codec: str,
        *,
        is_tagged: bool,
    ) -> Operation:
        if kind is Kind.BARRIER:
            return Operation(round=round_, index=index, kind=kind)
        dtype = dice.choice(("float32", "float32", "float64", "int32", "int64", "uint16"))
        largest = self._element_count
        count = dice.choice((largest, largest, largest // 7 + 1, dice.randint(0, 100), 1))
        if kind is Kind.MANY:
            count = dice.choice((largest, 1000, dice.randint(0, 100)))
        reduces = kind not in (Kind.BROADCAST, Kind.ALL_GATHER)
        op = dice.choice(("sum", "sum", "avg", "min", "max")) if reduces else "sum"
        if kind is Kind.MANY or (op == "avg" and dtype not in ("float32", "float64")):
            op = "sum"
        can_round = kind in (Kind.ALL_REDUCE, Kind.ASYNC, Kind.MANY) and dtype == "float32"
        if kind is Kind.MANY and find_codec(codec).is_lossy:
            dtype, can_round = "float32", True
        raises = kind in (Kind.ALL_REDUCE, Kind.BROADCAST) and dice.random() < 0.3
        return Operation(
            round=round_,
            index=index,
            kind=kind,
            op=op,
            dtype=dtype,
            count=count,
            codec=codec if can_round else "raw",
            has_out=kind in (Kind.ALL_REDUCE, Kind.ASYNC, Kind.BROADCAST) and dice.random() < 0.5,
            on_loss="raise" if raises else "retry",
            tag=f"t{index % 3}" if kind is Kind.ASYNC and is_tagged else None,
        )


def number_of(peer_id: str) -> int:
    """Of the peer `c12-3f9a0b`: 12. Numbers are given once in a run.

    Raises:
        ValueError: no peer of this test has such an id.
    """
    return int(peer_id.partition("-")[0].removeprefix("c"))


def base(operation: Operation, number: int) -> int:
    """What tells the contributions of peers, rounds and calls from each other."""
    text = f"{number}/{operation.round}/{operation.index}"
    found = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    if operation.dtype == "uint16":
        return found % 1024
    return found % (_LOSSY_BASE_END if operation.is_lossy else _BASE_END)


def _pattern(operation: Operation) -> NDArray[np.int64]:
    end = _LOSSY_PATTERN_END if operation.is_lossy else _PATTERN_END
    if operation.dtype == "uint16":
        end = _LOSSY_PATTERN_END
    return np.arange(operation.count, dtype=np.int64) % end


def contribution(operation: Operation, number: int) -> Array:
    """What this peer puts in."""
    values: Array = (_pattern(operation) + base(operation, number)).astype(operation.dtype)
    return values


def reduced(operation: Operation, numbers: Sequence[int]) -> Array:
    """What a reduction of these contributors gives, exactly; for a lossy codec before it."""
    pattern = _pattern(operation)
    bases = [base(operation, number) for number in numbers]
    match operation.op:
        case "min":
            values: Array = pattern + min(bases)
        case "max":
            values = pattern + max(bases)
        case _:
            values = pattern * len(numbers) + sum(bases)
    values = values.astype(operation.dtype)
    if operation.op == "avg":
        values = np.divide(values, values.dtype.type(len(numbers)))
    return values


def expected(operation: Operation, numbers: Sequence[int], rank: int) -> Array | None:
    """What the call gives to `rank`, for contributors in ring order; None where it gives nothing.

    A broadcast's only contributor that counts, its root, stands first.
    """
    match operation.kind:
        case Kind.BARRIER:
            return None
        case Kind.BROADCAST:
            return contribution(operation, numbers[0])
        case Kind.ALL_GATHER:
            return np.stack([contribution(operation, number) for number in numbers])
        case Kind.REDUCE_SCATTER:
            return np.array_split(reduced(operation, numbers), len(numbers))[rank]
        case _:
            return reduced(operation, numbers)


def bound(operation: Operation, world_size: int) -> float:
    """How far a lossy result may be off: the sum of the bounds of all encodings of a chunk.

    Partial sums of k contributions lie between 0 and k times the largest, give or take what
    the encodings before have added.
    """
    codec = find_codec(operation.codec)
    sums = operation.op in ("sum", "avg")
    total = 0.0
    for k in range(1, world_size + 1):
        largest = (k if sums else 1) * (_LOSSY_BASE_END + _LOSSY_PATTERN_END) + total
        total += codec.error_bound(-total, largest) + _FLOAT32_ERROR * largest
    return total / world_size if operation.op == "avg" else total


def digest(values: Array | None) -> str:
    """Of the bytes of a result."""
    if values is None:
        return ""
    return xxhash.xxh3_128_hexdigest(byte_view(np.ascontiguousarray(values)))


def describe_difference(found: Array | None, wanted: Array | None) -> str | None:
    """Say in which elements two results differ; None if they are equal."""
    if found is None or wanted is None:
        return None if found is wanted else "a result where there should be none, or none"
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{found.shape} {found.dtype} instead of {wanted.shape} {wanted.dtype}"
    wrong = np.flatnonzero(found.reshape(-1) != wanted.reshape(-1))
    if not wrong.size:
        return None
    first, last = int(wrong[0]), int(wrong[-1])
    return (
        f"{wrong.size} of {found.size} elements, from {first} to {last}: "
        f"{found.reshape(-1)[first]} instead of {wanted.reshape(-1)[first]}"
    )
