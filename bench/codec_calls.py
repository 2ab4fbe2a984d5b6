"""How much faster an all-reduce is with a codec: on this machine, and on an emulated WAN.

    python bench/codec_calls.py --peers 2,4 --rates 0,100,200,1000 --mib 64

Rates in Mbit/s of each host's link, `--delay-ms` one way; 0 is loopback. The rates but 0 need root
on Linux (`bench/wan.py`). Normal data, results checked. Codecs take turns, so that a busy machine
slows all of them; the figure is the ratio of median times to "raw" in the same run.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
from typing import Any

from common import (
    MIB,
    address_from,
    coordinator_words,
    end_orderly_at_sigterm,
    origin,
    print_table,
    say,
)
from peer_worker import Worker, together

from ringhaul.testing.wan import Wan, why_unavailable

Row = dict[str, Any]
PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}


@contextlib.contextmanager
def ring(spawn: Any, coordinator_host: str, peers: int):
    """Peers that obey; `spawn(host, words, **options)`, the coordinator is the last host."""
    words = coordinator_words(coordinator_host)
    coordinator = spawn(peers, words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    address = address_from(coordinator)
    workers = [
        Worker(lambda words, host=host: spawn(host, words, **PIPES), address, peers, host, None)
        for host in range(peers)
    ]
    yield workers
    for worker in workers:
        worker.close()
    coordinator.terminate()
    coordinator.wait()


@contextlib.contextmanager
def network(rate_mbit: float, delay_ms: float, peers: int):
    """A ring on loopback (rate 0) or on an emulated network."""
    if rate_mbit == 0:
        spawn = lambda _, words, **options: subprocess.Popen(words, **options)  # noqa: E731
        with ring(spawn, "127.0.0.1", peers) as workers:
            yield workers
        return
    with Wan(peers + 1, delay_ms=delay_ms) as wan:
        for host in range(peers):
            wan.set_host(host, up_mbit=rate_mbit, down_mbit=rate_mbit)
        with ring(wan.spawn, wan.address(peers), peers) as workers:
            yield workers


def measure(args: argparse.Namespace, rate_mbit: float, peers: int) -> list[Row]:
    """A row per codec."""
    codecs = args.codecs.split(",")
    seconds: dict[str, list[float]] = {codec: [] for codec in codecs}
    cpu: dict[str, list[float]] = {codec: [] for codec in codecs}
    with network(rate_mbit, args.delay_ms, peers) as workers:
        together(workers, do="prepare")
        for index in range(args.rounds + 1):
            for codec in codecs:
                answer = together(
                    workers, do="all_reduce", mib=args.mib, codec=codec, data="normal"
                )
                if index > 0:  # the first is to warm up
                    seconds[codec].append(answer["seconds"])
                    cpu[codec].append(answer["cpu_s"])
    raw_s = statistics.median(seconds["raw"])
    rows = []
    for codec in codecs:
        median_s = statistics.median(seconds[codec])
        bits = args.mib * MIB * 8 * 2 * (peers - 1) / peers / median_s
        row = {
            "rate_mbit": rate_mbit,
            "peers": peers,
            "codec": codec,
            "median_s": median_s,
            "worst_s": max(seconds[codec]),
            "best_s": min(seconds[codec]),
            "speed_up": raw_s / median_s,
            "busbw_mbit": bits / 1e6,
            "cpu_s_per_GB": statistics.median(cpu[codec]) / (args.mib * MIB / 1e9),
        }
        rows.append(row)
        say(f"  {rate_mbit or 'loopback'} n={peers} {codec}: {median_s:.3f} s, "
            f"{row['speed_up']:.2f} x raw")  # fmt: skip
    return rows


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peers", default="2")
    add("--rates", default="0,100,200,1000", help="Mbit/s; 0: loopback")
    add("--delay-ms", type=float, default=25.0, help="one way")
    add("--mib", type=float, default=64.0)
    add("--rounds", type=int, default=3)
    add("--codecs", default="raw,uint8,uint4,raw+zstd,uint8+zstd")
    add("--json", action="store_true")
    args = parser.parse_args()
    end_orderly_at_sigterm()
    rows, found = [], origin()
    for rate in map(float, args.rates.split(",")):
        if rate and (reason := why_unavailable()):
            say(f"{rate} Mbit/s: skipped, {reason}")
            continue
        for peers in map(int, args.peers.split(",")):
            rows += measure(args, rate, peers)
    if args.json:
        print(json.dumps(found | {"mib": args.mib, "delay_ms": args.delay_ms, "rows": rows}))
        return
    head = ["codec", "peers", "Mbit/s", "median s", "worst s", "x raw", "busbw Mbit/s", "CPU s/GB"]
    print_table(
        head,
        [
            [
                row["codec"],
                str(row["peers"]),
                f"{row['rate_mbit']:g}" if row["rate_mbit"] else "loopback",
                *(f"{row[name]:.3f}" for name in ("median_s", "worst_s")),
                f"{row['speed_up']:.2f}",
                f"{row['busbw_mbit']:.0f}",
                f"{row['cpu_s_per_GB']:.2f}",
            ]
            for row in rows
        ],
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
