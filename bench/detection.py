"""No false evictions: peers over an emulated WAN with loss, and every core busy besides.

`python bench/detection.py --peers 3 --seconds 300 --round-trip-ms 200 --loss 0.02` (Linux, root).
Counts who is evicted; the exit code is 0 only if nobody is, and no call failed.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import time

from ringhaul.testing.processes import CoordinatorProcess, PeerProcess
from ringhaul.testing.wan import Wan, why_unavailable

#: Between two rounds, at the most, before it is said that they do not go on.
STUCK_S = 120.0


def burn() -> None:
    """Keep one core busy."""
    while True:
        sum(range(100_000))


def watch(peers: list[PeerProcess], seconds: float) -> tuple[int, list[str]]:
    """Count rounds until the time is over; tell the errors."""
    ends_at = time.monotonic() + seconds
    rounds, errors = 0, []
    while time.monotonic() < ends_at:
        for peer in peers:
            event = peer.expect_any("round", "error", timeout_s=STUCK_S)
            rounds += event["event"] == "round"
            if event["event"] == "error" or not event["right"]:
                errors.append(str(event))
    return rounds, errors


def run(args: argparse.Namespace) -> dict[str, object]:
    """Make the network, the load and the peers; return what was counted."""
    burners = [multiprocessing.Process(target=burn, daemon=True) for _ in range(args.burners)]
    with contextlib.ExitStack() as stack:
        wan = stack.enter_context(
            Wan(args.peers + 1, delay_ms=args.round_trip_ms / 2, loss=args.loss, up_mbit=args.mbit)
        )
        with wan.inside(args.peers):
            coordinator = stack.enter_context(CoordinatorProcess(wan.address(args.peers)))
        peers = []
        for host in range(args.peers):
            words = ("--min-world-size", str(args.peers), "--count", str(args.elements))
            with wan.inside(host):
                peers.append(
                    stack.enter_context(PeerProcess(coordinator.address, host, "--admit", *words))
                )
        for peer in peers:
            peer.expect("joined", timeout_s=STUCK_S)
        for burner in burners:
            burner.start()
        try:
            rounds, errors = watch(peers, args.seconds)
        finally:
            for burner in burners:
                burner.kill()
        lost = wan.stats().pieces.get("lost", 0)
    said = coordinator.errors
    return {
        "peers": args.peers,
        "seconds": args.seconds,
        "rounds": rounds // args.peers,
        "packets_lost": lost,
        "repairs": sum("opened by repair" in line for line in said),
        "evictions": [line.strip() for line in said if " is out: " in line and "left" not in line],
        "errors": errors,
    }


def main() -> int:
    """Parse the options, run, tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--round-trip-ms", type=float, default=200)
    parser.add_argument("--loss", type=float, default=0.02)
    parser.add_argument("--mbit", type=float, default=100)
    parser.add_argument("--elements", type=int, default=100_000)
    parser.add_argument("--burners", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    reason = why_unavailable()
    if reason is not None:
        print(f"not possible here: {reason}", file=sys.stderr)
        return 2
    report = run(args)
    print(json.dumps(report) if args.json else "\n".join(f"{k}: {v}" for k, v in report.items()))
    return 1 if report["evictions"] or report["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
