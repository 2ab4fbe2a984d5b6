"""How much of the communication the training loops hide, on an emulated wide-area network.

Every peer is a process on a host of its own, with `--rate-mbit` up and down and `--delay-ms`
one way. An inner step is a pause of `--step-ms`, as for a peer whose GPU computes. For each loop
and codec: the share of the time in which a peer does not compute (outer steps and waiting), how
long it waits for averages in a round, and how much of synchronous DiLoCo's waiting is hidden.
Root on Linux.

    python bench/diloco_hidden.py --rate-mbit 100 --delay-ms 25 --mib 8
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
from common import (
    MIB,
    address_from,
    coordinator_words,
    end_orderly_at_sigterm,
    origin,
    print_table,
    say,
)

import ringhaul
from ringhaul.diloco import DelayedDiLoCo, DiLoCo, StreamingDiLoCo
from ringhaul.testing.wan import Wan, why_unavailable

LOOPS = ("diloco", "delayed", "streaming")
#: Rounds before those that count: the first average is cold, and a pipeline has to fill.
WARM_UP_ROUNDS = 2


def make(kind: str, comm: ringhaul.Communicator, args: argparse.Namespace, codec: str) -> Any:
    """A loop over so many layers of equal size."""
    count = int(args.mib * MIB) // 4 // args.layers
    rng = np.random.default_rng(0)
    params = {f"layer.{i}": rng.standard_normal(count, np.float32) for i in range(args.layers)}
    match kind:
        case "diloco":
            return params, DiLoCo(comm, params, args.inner_steps, codec=codec)
        case "delayed":
            return params, DelayedDiLoCo(comm, params, args.inner_steps, codec=codec)
        case _:
            return params, StreamingDiLoCo(
                comm, params, args.inner_steps, fragments=args.layers, overlap=args.overlap,
                codec=codec,
            )  # fmt: skip


def run_peer(args: argparse.Namespace) -> None:
    """Train with each loop and codec in turn; print what was found."""
    found = []
    for kind in args.loops.split(","):
        for codec in args.codecs.split(","):
            with ringhaul.connect(args.address, min_world_size=args.peers) as comm:
                found.append({"loop": kind, "codec": codec, **measure(kind, comm, args, codec)})
                comm.barrier()
            time.sleep(1.0)  # the others leave, too, before the next run is founded
    sys.stdout.write(json.dumps(found) + "\n")


def measure(
    kind: str, comm: ringhaul.Communicator, args: argparse.Namespace, codec: str
) -> dict[str, Any]:
    """Rounds of pauses."""
    params, outer = make(kind, comm, args, codec)
    began_at = time.perf_counter()
    computing_s = reduce_s = wait_s = 0.0
    sent_bytes = rounds = 0
    first = WARM_UP_ROUNDS * args.inner_steps
    while outer.position < first + args.rounds * args.inner_steps:
        step_at = time.perf_counter()
        time.sleep(args.step_ms / 1e3)
        params["layer.0"][:100] += 0.001
        if outer.position >= first:
            computing_s += time.perf_counter() - step_at
        info = outer.step()
        if outer.position == first:
            began_at = time.perf_counter()
        elif info is not None and outer.position > first:
            rounds += 1
            reduce_s += info.reduce_s
            wait_s += info.wait_s
            sent_bytes += info.sent_bytes
    total_s = time.perf_counter() - began_at
    return {
        "total_s": total_s,
        "idle_s": total_s - computing_s,
        "wait_s": wait_s,
        "reduce_s": reduce_s / rounds,
        "sent_mb": sent_bytes / 1e6 / args.rounds,
    }


def run(args: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """All peers, each on its host; a coordinator on one more."""
    with Wan(args.peers + 1, delay_ms=args.delay_ms) as wan:
        for host in range(args.peers):
            wan.set_host(host, up_mbit=args.rate_mbit, down_mbit=args.rate_mbit)
        words = coordinator_words(wan.address(args.peers))
        coordinator = wan.spawn(
            args.peers, words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        mine = [sys.executable, __file__, *sys.argv[1:], "--address", address_from(coordinator)]
        peers = [
            wan.spawn(host, mine, stdout=subprocess.PIPE, text=True) for host in range(args.peers)
        ]
        answers = [json.loads(peer.communicate()[0]) for peer in peers]
        coordinator.terminate()
        coordinator.wait()
    return answers


def summed_up(answers: list[list[dict[str, Any]]], rounds: int) -> list[dict[str, Any]]:
    """The slowest peer of each run, beside synchronous DiLoCo with the same codec."""
    rows: list[dict[str, Any]] = [
        {
            "loop": runs[0]["loop"],
            "codec": runs[0]["codec"],
            "not_computing": max(run["idle_s"] / run["total_s"] for run in runs),
            "idle_s_per_round": max(run["idle_s"] for run in runs) / rounds,
            # who comes last waits least: of two, the one that waits for the network alone
            "wait_s_per_round": min(run["wait_s"] for run in runs) / rounds,
            "reduce_s": statistics.median(run["reduce_s"] for run in runs),
            "sent_mb_per_round": runs[0]["sent_mb"],
        }
        for runs in zip(*answers, strict=True)
    ]
    shown = {row["codec"]: row["wait_s_per_round"] for row in rows if row["loop"] == "diloco"}
    for row in rows:
        base = shown.get(row["codec"])
        row["hidden"] = 1 - row["wait_s_per_round"] / base if base else None
    return rows


def main() -> None:
    """Emulate, train, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peers", type=int, default=2)
    add("--rate-mbit", type=float, default=100.0)
    add("--delay-ms", type=float, default=25.0, help="one way")
    add("--mib", type=float, default=8.0, help="of parameters")
    add("--layers", type=int, default=4, help="as many fragments")
    add("--inner-steps", type=int, default=20)
    add("--step-ms", type=float, default=100.0)
    add("--overlap", type=int, default=4)
    add("--rounds", type=int, default=5)
    add("--loops", default=",".join(LOOPS))
    add("--codecs", default="raw,uint8,uint4")
    add("--quick", action="store_true", help="a smoke test of some seconds")
    add("--json", action="store_true")
    add("--address", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.mib, args.step_ms, args.rounds, args.codecs = 1.0, 20.0, 2, "uint8"
    if args.address:
        run_peer(args)
        return
    end_orderly_at_sigterm()
    if reason := why_unavailable():
        say(f"skipped: {reason}")
        return
    rows = summed_up(run(args), args.rounds)
    if args.json:
        print(json.dumps(origin() | {"rows": rows}))
        return
    print_table(
        (
            "loop, codec",
            "not computing",
            "idle s/round",
            "waits s/round",
            "hidden",
            "average s",
            "MB/round",
        ),
        [
            (
                f"{row['loop']}, {row['codec']}",
                f"{row['not_computing']:.1%}",
                f"{row['idle_s_per_round']:.3f}",
                f"{row['wait_s_per_round']:.3f}",
                "" if row["hidden"] is None else f"{row['hidden']:.0%}",
                f"{row['reduce_s']:.2f}",
                f"{row['sent_mb_per_round']:.2f}",
            )
            for row in rows
        ],
    )
    print(json.dumps(origin()))


if __name__ == "__main__":
    main()
