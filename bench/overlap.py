"""An asynchronous all-reduce while the caller's thread computes, on loopback.

The I/O thread shares the interpreter lock with the caller. Measures how fast a 16 MiB all-reduce
is beside large matrix products, many small NumPy calls, and a pure Python loop, as a share of an
idle interpreter's in the same run; and how much slower the computation is.
`python bench/overlap.py --switch-ms 5,0.5`
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import MIB, address_from, coordinator_words, origin, print_table

import ringhaul

_SQUARE = np.random.default_rng(0).standard_normal((384, 384)).astype(np.float32)
_SMALL = np.ones(100, np.float32)


def matmul() -> None:
    """A few milliseconds without the interpreter lock."""
    _SQUARE @ _SQUARE


def small_calls() -> None:
    """Each takes about a microsecond, with the lock."""
    for _ in range(200):
        np.add(_SMALL, _SMALL)


def python_loop() -> None:
    """Bytecode only."""
    total = 0
    for number in range(5000):
        total += number


LOADS: dict[str, Callable[[], None] | None] = {
    "idle": None,
    "large matmuls": matmul,
    "small NumPy calls": small_calls,
    "pure Python loop": python_loop,
}


def steps_per_s(load: Callable[[], None]) -> float:
    """How fast the computation is by itself."""
    began = time.perf_counter()
    count = 0
    while time.perf_counter() - began < 0.3:
        load()
        count += 1
    return count / (time.perf_counter() - began)


def run_peer(address: str, args: argparse.Namespace) -> None:
    """Each load beside so many operations; prints seconds per operation, steps per second."""
    found: dict[str, dict[str, Any]] = {}
    with ringhaul.connect(address, min_world_size=args.peers) as comm:
        own = np.full(int(args.mib * MIB) // 4, comm.rank + 1, np.float32)
        out = np.empty_like(own)
        comm.all_reduce(own, out=out)
        for switch_ms in map(float, args.switch_ms.split(",")):
            sys.setswitchinterval(switch_ms / 1e3)
            for name, load in LOADS.items():
                alone = steps_per_s(load) if load else 0.0
                comm.barrier()
                times, steps = [], 0
                for _ in range(args.rounds):
                    began = time.perf_counter()
                    work = comm.all_reduce_async(own, out=out)
                    while load is not None and not work.done():
                        load()
                        steps += 1
                    work.wait()
                    times.append(time.perf_counter() - began)
                assert out.min() == out.max() == args.peers * (args.peers + 1) / 2
                found[f"{name}, {switch_ms:g} ms"] = {
                    "median_s": statistics.median(times),
                    "compute": steps / sum(times) / alone if alone else None,
                }
    sys.stdout.write(json.dumps(found) + "\n")


def main() -> None:
    """Start the peers, gather, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--mib", type=float, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--switch-ms", default="5,0.5", help="sys.setswitchinterval, tried in turn")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--address", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.address:
        run_peer(args.address, args)
        return
    coordinator = subprocess.Popen(coordinator_words(), stdout=subprocess.PIPE, text=True)
    try:
        words = [sys.executable, __file__, *sys.argv[1:], "--address", address_from(coordinator)]
        peers = [
            subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(args.peers)
        ]
        answers = [json.loads(peer.communicate()[0]) for peer in peers]
    finally:
        coordinator.terminate()
        coordinator.wait()
    report(answers, args)


def report(answers: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """The slowest peer of each load; shares of the idle interpreter with the same interval."""
    rows = []
    for name in answers[0]:
        median_s = max(answer[name]["median_s"] for answer in answers)
        idle = "idle," + name.partition(",")[2]
        idle_s = max(answer[idle]["median_s"] for answer in answers)
        shares = [a[name]["compute"] for a in answers if a[name]["compute"] is not None]
        rows.append(
            {
                "load": name,
                "median_s": median_s,
                "busbw_GB_s": args.mib * MIB / median_s * 2 * (args.peers - 1) / args.peers / 1e9,
                "of_idle": idle_s / median_s,
                "compute_of_alone": min(shares) if shares else None,
            }
        )
    if args.json:
        sys.stdout.write(json.dumps({**origin(), "rows": rows}) + "\n")
        return
    print_table(
        ("caller's thread, switch interval", "busbw GB/s", "of idle", "computes at"),
        [
            (
                row["load"],
                f"{row['busbw_GB_s']:.2f}",
                f"{row['of_idle']:.0%}",
                "" if row["compute_of_alone"] is None else f"{row['compute_of_alone']:.0%}",
            )
            for row in rows
        ],
    )
    sys.stdout.write(json.dumps(origin()) + "\n")


if __name__ == "__main__":
    main()
