"""A peer process for tests: connects, loops over a collective, checks every result.

`python -m ringhaul.testing.peer ADDRESS INDEX [options]` prints one JSON line per event.
"""

import argparse
import ctypes
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringhaul import limits
from ringhaul.communicator import Communicator
from ringhaul.errors import RinghaulError
from ringhaul.io.calls import ReduceCall
from ringhaul.joining import connect
from ringhaul.many import Batch, Parcel
from ringhaul.results import ReduceInfo
from ringhaul.state.content import Stage
from ringhaul.state.shared import SharedState
from ringhaul.testing.processes import check_sum, contribution

Array = NDArray[np.float32]


def say(event: str, **facts: Any) -> None:  # noqa: ANN401 - whatever JSON takes
    """Print one event."""
    sys.stdout.write(json.dumps({"event": event, "at": time.monotonic(), **facts}) + "\n")
    sys.stdout.flush()


def sources_of(values: Array, pattern: Array) -> list[str]:
    """Whose contributions these values are the exact sum of; empty if they are none."""
    weight = int(values[0] / pattern[0]) if values.size else 0
    names = [f"w{index}" for index in range(weight.bit_length()) if weight >> index & 1]
    return names if names and check_sum(values, names, pattern) else []


def call(
    comm: Communicator,
    options: argparse.Namespace,
    array: Array,
    out: Array | None,
    pattern: Array,
) -> dict[str, Any]:
    """Make one call and check what it gave; tell who contributed."""
    how: dict[str, Any] = {"on_loss": options.on_loss, "timeout_s": options.timeout_s}
    own = f"w{options.index}"
    if options.collective == "all_gather":
        rows = comm.all_gather(array, **how)
        sources = [name for row in rows for name in sources_of(row, pattern)]
        is_whole = len(sources) == len(set(sources)) == len(rows) == comm.world_size
        return {"right": is_whole and sources[comm.rank] == own, "contributors": sources}
    if options.collective == "reduce_scatter":
        values = comm.reduce_scatter(array, **how)
        part = np.array_split(pattern, comm.world_size)[comm.rank]
        sources = sources_of(values, part) if values.size == part.size else []
        is_whole = len(sources) == comm.world_size
        return {"right": is_whole and own in sources, "contributors": sources}
    if options.collective == "broadcast":
        info = comm.broadcast(array, out=out, **how)
        sources = sources_of(array if out is None else out, pattern)
        names = [peer.split("-")[0] for peer in info.contributors]
        right = len(sources) == 1 and sources[0] in names
        facts: dict[str, Any] = {"right": right, "source": sources}
    else:
        info = comm.all_reduce(array, out=out, **how)
        result = array if out is None else out
        facts = {"right": check_sum(result, info.contributors, pattern)}
    return {**facts, "contributors": info.contributors, "attempts": info.attempts}


def run_rounds(comm: Communicator, options: argparse.Namespace) -> None:
    """Loop; the array is restored before each round and checked after it."""
    own = contribution(options.index, options.count)
    pattern = contribution(0, options.count)
    usual_s = 0.0
    array = own.copy()
    out = np.empty_like(own) if options.out else None
    for round_index in range(options.rounds):
        if out is None:
            np.copyto(array, own)
        try:
            if options.hold_lock_s:
                hold_interpreter_lock(options.hold_lock_s)
            if options.admit:
                comm.admit()
            if round_index == options.die_in_round:
                threading.Timer(usual_s / 2, die).start()
            started = time.monotonic()
            done = call(comm, options, array, out, pattern)
        except RinghaulError as error:
            say(
                "error",
                round=round_index,
                kind=type(error).__name__,
                text=str(error),
                peers=error.peers,
                untouched=bool(np.array_equal(array, own)),
                world_size=comm.world_size,
            )
            if options.stop_on_error:
                return
            continue
        usual_s = time.monotonic() - started
        say(
            "round",
            round=round_index,
            **done,
            seconds=usual_s,
            generation=comm.generation,
            world_size=comm.world_size,
        )


def run_many(comm: Communicator, options: argparse.Namespace) -> None:
    """Loop over `all_reduce_many`: many small arrays, some large ones; each is checked."""
    sizes = [1 + 7 * (place % 5) for place in range(options.many)]
    sizes[:: max(1, options.many // 10)] = [options.count] * len(
        sizes[:: max(1, options.many // 10)]
    )
    owns = [contribution(options.index, size) for size in sizes]
    patterns = [contribution(0, size) for size in sizes]
    for round_index in range(options.rounds):
        if round_index == options.die_in_round:
            die_at_operation(options.die_at_operation)
        arrays = [own.copy() for own in owns]
        error: RinghaulError | None = None
        if options.admit:
            comm.admit()
        try:
            infos: Sequence[ReduceInfo | None] = comm.all_reduce_many(
                arrays,
                max_in_flight=options.max_in_flight,
                on_loss=options.on_loss,
                timeout_s=options.timeout_s,
            )
        except RinghaulError as caught:
            error, infos = caught, caught.infos
        right = all(
            check_sum(array, info.contributors, pattern) if info else np.array_equal(array, own)
            for array, info, pattern, own in zip(arrays, infos, patterns, owns, strict=True)
        )
        say(
            "round",
            round=round_index,
            right=right,
            contributors=[info and info.contributors for info in infos],
            attempts=[info and info.attempts for info in infos],
            kind=type(error).__name__,
            text=str(error),
            world_size=comm.world_size,
        )


def run_sync(comm: Communicator, options: argparse.Namespace) -> None:
    """Wait for all members, then sync a state of one value; say what it holds in the end."""
    while comm.world_size < options.members:
        comm.admit()
    weights = content_of(options.content, options.sync_mib)
    state = SharedState({"weights": weights, "other": np.zeros(1)}, options.revision)
    if options.die_at_block:
        at_call(Stage, "block" if options.revision else "keep", options.die_at_block, die)
    if options.say_at_block:
        at_call(Stage, "keep", options.say_at_block, lambda: say("at_block"))
    say("ready")
    facts: dict[str, Any] = {}
    try:
        budget = options.upload_bytes_per_s
        info = comm.sync_state(state, timeout_s=options.timeout_s, upload_bytes_per_s=budget)
        facts = {"received_bytes": info.received_bytes, "sources": info.sources}
    except RinghaulError as error:
        facts = {"kind": type(error).__name__, "text": str(error)}
    known = (
        number
        for number in range(10)
        if np.array_equal(weights, content_of(number, options.sync_mib))
    )
    say("synced", content=next(known, None), revision=state.revision, **facts)


def content_of(number: int, mib: int) -> NDArray[np.uint32]:
    """A content that no compression makes smaller."""
    return np.random.default_rng(number).integers(0, 2**32, mib << 18, np.uint32)


def at_call(owner: type, method: str, count: int, deed: Callable[[], None]) -> None:
    """Do something where a method of a class is called for the `count`-th time, just before."""
    act, numbers = getattr(owner, method), itertools.count(1)

    def act_then(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        if next(numbers) == count:
            deed()
        return act(*args, **options)

    setattr(owner, method, act_then)


def die_at_operation(count: int) -> None:
    """Die where the `count`-th operation of an `all_reduce_many` would be posted."""
    prepare, numbers = Batch._prepare, itertools.count(1)

    def prepare_or_die(batch: Batch, parcel: Parcel) -> ReduceCall:
        if next(numbers) == count:
            die()
        return prepare(batch, parcel)

    Batch._prepare = prepare_or_die  # type: ignore[assignment, method-assign]


def hold_interpreter_lock(duration_s: float) -> None:
    """As an extension does that computes without releasing the lock: no thread runs."""
    ctypes.PyDLL(None).usleep(ctypes.c_uint(int(duration_s * 1e6)))


def die() -> None:
    """Say so, then end as SIGKILL ends a process."""
    say("dying")
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Parse the options, connect, loop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("index", type=int)
    parser.add_argument("--collective", default="all_reduce")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1_000_000)
    parser.add_argument("--min-world-size", type=int, default=1)
    parser.add_argument("--admit", action="store_true")
    parser.add_argument("--out", action="store_true")
    parser.add_argument("--on-loss", default="retry")
    parser.add_argument("--timeout-s", type=float)
    parser.add_argument("--die-in-round", type=int, help="in the middle of this call")
    parser.add_argument("--many", type=int, default=0, help="arrays per all_reduce_many")
    parser.add_argument("--max-in-flight", type=int, default=8)
    parser.add_argument("--die-at-operation", type=int, default=1, help="of an all_reduce_many")
    parser.add_argument("--stop-on-error", action="store_true")
    parser.add_argument("--sync-mib", type=int, default=0, help="sync a state of this size once")
    parser.add_argument("--members", type=int, default=1, help="that the sync waits for")
    parser.add_argument("--content", type=int, default=0)
    parser.add_argument("--revision", type=int, default=0)
    parser.add_argument("--upload-bytes-per-s", type=float)
    parser.add_argument("--die-at-block", type=int, default=0, help="given, or received if stale")
    parser.add_argument("--say-at-block", type=int, default=0, help="received")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=NUMBER")
    parser.add_argument("--hold-lock-s", type=float, help="of the interpreter, before each round")
    options = parser.parse_args()
    for limit in options.limit:
        limit_name, _, number = limit.partition("=")
        assert hasattr(limits, limit_name), limit_name
        setattr(limits, limit_name, float(number))
    name = f"w{options.index}"
    with connect(options.address, name=name, min_world_size=options.min_world_size) as comm:
        say("joined", peer=comm.peer_id, rank=comm.rank, world_size=comm.world_size)
        run = run_sync if options.sync_mib else run_many if options.many else run_rounds
        run(comm, options)
    say("left")


if __name__ == "__main__":
    main()
