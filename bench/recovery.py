"""SIGKILL of one of 3 peers in the middle of an all-reduce, on loopback.

Measures from the kill to the survivors' return, less an undisturbed call of the survivors
alone. Every sum is checked. `python bench/recovery.py --kills 20 --mib 64`
"""

import argparse
import contextlib
import json
import statistics

from ringhaul.testing.processes import CoordinatorProcess, PeerProcess


def rounds_of(peer: PeerProcess, world_size: int) -> dict[str, object]:
    """The next committed round with so many contributors."""
    while True:
        event = peer.expect("round")
        assert event["right"], event
        if len(event["contributors"]) == world_size:
            return event


def main() -> None:
    """Kill, measure, start another, repeat."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--mib", type=float, default=64)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = measure(args)
    print(json.dumps(report) if args.json else "\n".join(f"{k}: {v}" for k, v in report.items()))


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Kill as often as asked, one after the other."""
    count = str(int(args.mib * (1 << 20) / 4))
    excess, undisturbed, in_the_middle = [], [], 0
    with contextlib.ExitStack() as stack:
        coordinator = stack.enter_context(CoordinatorProcess())

        def start(index: int, *more: str) -> PeerProcess:
            peer = PeerProcess(coordinator.address, index, "--admit", "--count", count, *more)
            return stack.enter_context(peer)

        stack.push(lambda kind, *_: tell(coordinator) if kind else None)
        survivors = [start(0), start(1)]
        for kill in range(args.kills):
            victim = start(2 + kill % 5, "--die-in-round", "4")
            killed_at = victim.expect("dying")["at"]
            firsts = []
            for peer in survivors:
                rounds_of(peer, 3)
                firsts.append(rounds_of(peer, 2))
            alone = [float(str(rounds_of(survivors[0], 2)["seconds"])) for _ in range(4)]
            returned_at = max(float(str(first["at"])) for first in firsts)
            in_the_middle += any(int(str(first["attempts"])) > 1 for first in firsts)
            undisturbed.append(statistics.median(alone[1:]))
            excess.append(returned_at - killed_at - undisturbed[-1])
    return {
        "kills": args.kills,
        "in_the_middle": in_the_middle,
        "undisturbed_ms": statistics.median(undisturbed) * 1e3,
        "recovery_ms_median": statistics.median(excess) * 1e3,
        "recovery_ms_worst": max(excess) * 1e3,
    }


def tell(coordinator: CoordinatorProcess) -> None:
    """Something went wrong: show what the coordinator saw."""
    print("".join(coordinator.errors[-60:]))


if __name__ == "__main__":
    main()
