"""One peer that runs what it is told, for benchmarks: an order per line in, a result per line out.

`python bench/peer_worker.py ADDRESS WORLD_SIZE INDEX [STREAMS]`; `Worker` starts and drives it.
An order: `{"do": "all_reduce", "mib": 64, "codec": "raw", "calls": 1, "in_place": false}`; with
`calls` above 1 so many are in flight at once, each of its share of the bytes. "data": "normal"
instead of constant arrays.
"""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import MIB

import ringhaul
from ringhaul import compiled

Start = Callable[[list[str]], "subprocess.Popen[str]"]


class Worker:
    """A peer process, driven from here."""

    def __init__(
        self, start: Start, address: str, world_size: int, index: int, streams: int | None
    ) -> None:
        words = [sys.executable, str(Path(__file__)), address, str(world_size), str(index)]
        self._child = start(words + ([str(streams)] if streams else []))

    def order(self, **fields: Any) -> None:
        """Tell it; do not wait."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(fields) + "\n")
        self._child.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for its next line."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"a peer ended with exit code {self._child.wait()}, see above")
        return dict(json.loads(line))

    def close(self) -> None:
        """Let it leave."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


def together(workers: list[Worker], **fields: Any) -> dict[str, Any]:
    """One order to all; the slowest one's time is the time."""
    for worker in workers:
        worker.order(**fields)
    return combined([worker.answer() for worker in workers])


def combined(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The answers of all peers to one order, as one."""
    if skipped := [answer["skipped"] for answer in answers if "skipped" in answer]:
        return {"skipped": skipped[0]}
    return {
        "seconds": max(answer["seconds"] for answer in answers),
        "cpu_s": sum(answer["cpu_s"] for answer in answers),
        "attempts": max(answer["attempts"] for answer in answers),
    }


def all_reduce(
    comm: ringhaul.Communicator,
    mib: float,
    codec: str = "raw",
    calls: int = 1,
    in_place: bool = False,
    data: str = "constant",
) -> dict[str, Any]:
    """Time one call, or several at once; check the sums."""
    if data == "normal":
        return all_reduce_normal(comm, mib, codec)
    if calls > 1 and not hasattr(comm, "all_reduce_async"):
        return {"skipped": "all_reduce_async is not in this version"}
    count = max(1, int(mib * MIB / 4 / calls))
    own = [np.full(count, comm.rank + 1, np.float32) for _ in range(calls)]
    outs = own if in_place else [np.zeros_like(array) for array in own]
    targets = [None if in_place else out for out in outs]
    started, cpu = time.perf_counter(), time.process_time()
    try:
        if calls == 1:
            infos = [comm.all_reduce(own[0], out=targets[0], codec=codec)]
        else:
            pairs = zip(own, targets, strict=True)
            works = [comm.all_reduce_async(a, out=o, codec=codec) for a, o in pairs]
            infos = [work.wait() for work in works]
    except ValueError as error:
        return {"skipped": str(error)}
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    wanted = sum(range(1, comm.world_size + 1))
    for out in outs:  # a constant array is exact under every codec
        assert out.min() == wanted, out.min()
        assert out.max() == wanted, out.max()
    return {"seconds": seconds, "cpu_s": cpu_s, "attempts": max(info.attempts for info in infos)}


@functools.lru_cache(maxsize=1)
def normal_arrays(world_size: int, count: int) -> list[Any]:
    """What each rank puts in, so that each can check the sum."""
    rngs = [np.random.default_rng(rank) for rank in range(world_size)]
    return [rng.standard_normal(count, dtype=np.float32) for rng in rngs]


def all_reduce_normal(comm: ringhaul.Communicator, mib: float, codec: str) -> dict[str, Any]:
    """Time one call on normal data, which compress no better than they do in life."""
    arrays = normal_arrays(comm.world_size, int(mib * MIB / 4))
    out = np.empty_like(arrays[0])
    started, cpu = time.perf_counter(), time.process_time()
    info = comm.all_reduce(arrays[comm.rank], out=out, codec=codec)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    error = np.abs(sum(arrays) - out).max() / np.sqrt(comm.world_size)
    assert error < 0.5 * comm.world_size, error
    return {"seconds": seconds, "cpu_s": cpu_s, "attempts": info.attempts}


def prepare(comm: ringhaul.Communicator) -> dict[str, Any]:
    """Have compiled kernels ready, where numba is installed, before anything is measured."""
    count = compiled.load() if compiled.is_available() else 0
    return {"seconds": 0.0, "cpu_s": 0.0, "attempts": count}


def barrier(comm: ringhaul.Communicator) -> dict[str, Any]:
    """Time one barrier."""
    started, cpu = time.perf_counter(), time.process_time()
    comm.barrier()
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu_s": cpu_s, "attempts": 1}


ACTS = {"all_reduce": all_reduce, "barrier": barrier, "prepare": prepare}


def main() -> None:
    """Connect; obey until stdin ends."""
    address, world_size, index = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    streams = int(sys.argv[4]) if len(sys.argv) > 4 else None
    name = f"w{index}-{os.getpid()}"
    with ringhaul.connect(address, name=name, min_world_size=world_size, streams=streams) as comm:
        for line in sys.stdin:
            order = json.loads(line)
            act = ACTS[order.pop("do")]
            print(json.dumps(act(comm, **order)), flush=True)


if __name__ == "__main__":
    main()
