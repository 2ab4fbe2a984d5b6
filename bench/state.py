"""`sync_state`: hashing, equal states, all and 1 % of the blocks changed; and several holders.

    python bench/state.py --mib 256
    python bench/state.py --wan --wan-mib 1024

Loopback: 2 peers, and 1 holder with 2 receivers; from the call to the slowest peer's return,
hashing and verification included. GB/s: state bytes / s. `--wan` (Linux, root) emulates hosts of
`--rate-mbit` up and ten times that down, `--delay-ms` one way apart: one joiner with 1 and with 2
holders; shares of the sum of the holders' uplinks. The bytes are random; every result is checked.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack

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
from ringhaul.io.hashing import take_content
from ringhaul.limits import STATE_BLOCK_BYTES
from ringhaul.testing.wan import Wan, why_unavailable


def worker(address: str, world_size: int, index: int, mib: int) -> None:
    """A peer: an order per line in, a result per line out."""
    base = np.random.default_rng(0).integers(0, 256, mib * MIB, np.uint8)
    state = ringhaul.SharedState({"state": base}, revision=0)
    wanted = state.digest()
    with ringhaul.connect(address, name=f"w{index}", min_world_size=world_size) as comm:
        comm.sync_state(state)
        for line in sys.stdin:
            order = json.loads(line)
            is_receiver = index in order["receivers"]
            if is_receiver and order["share"]:
                base[:: int(STATE_BLOCK_BYTES / order["share"])] ^= 255
            comm.barrier()
            state.revision += 1
            started, cpu = time.perf_counter(), time.process_time()
            info = comm.sync_state(state, "receive_only" if is_receiver else "send_only")
            answer = {
                "seconds": time.perf_counter() - started,
                "cpu_s": time.process_time() - cpu,
                "received_bytes": info.received_bytes,
                "sources": len(info.sources),
            }
            assert state.digest() == wanted
            print(json.dumps(answer), flush=True)


def _spawn_here(_: int, words: list[str], **how: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(words, **how)


class Peers:
    """Some peers and their coordinator."""

    def __init__(self, stack: ExitStack, count: int, mib: int, wan: Wan | None = None) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        spawn = _spawn_here if wan is None else wan.spawn
        host = "127.0.0.1" if wan is None else wan.address(count)
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        coordinator = spawn(count, coordinator_words(host), **quiet)
        stack.callback(lambda: (coordinator.terminate(), coordinator.wait()))
        address = address_from(coordinator)
        self._children = []
        for index in range(count):
            words = [sys.executable, __file__, "--worker", address]
            child = spawn(index, [*words, str(count), str(index), str(mib)], **pipes)
            stack.callback(lambda child=child: (child.stdin.close(), child.wait()))
            self._children.append(child)

    def sync(self, receivers: list[int], share: float) -> dict[str, float]:
        """One call of all; the slowest one's time is the time."""
        for child in self._children:
            child.stdin.write(json.dumps({"receivers": receivers, "share": share}) + "\n")
            child.stdin.flush()
        lines = [child.stdout.readline() for child in self._children]
        if not all(lines):
            raise SystemExit("a peer ended, see above")
        answers = [json.loads(line) for line in lines]
        return {
            "seconds": max(a["seconds"] for a in answers),
            "cpu_s": sum(a["cpu_s"] for a in answers),
            "received_bytes": sum(a["received_bytes"] for a in answers),
            "sources": max(a["sources"] for a in answers),
        }


def hashing(mib: int, rounds: int) -> list[dict[str, object]]:
    """What one thread and all of them hash, by time and by CPU time."""
    state = ringhaul.SharedState({"state": np.ones(mib * MIB, np.uint8)})
    rows = []
    ways = (("hash, 1 thread", state.content), ("hash, threads", lambda: take_content(state)))
    for what, act in ways:
        times = []
        for _ in range(rounds):
            started, cpu = time.perf_counter(), time.process_time()
            act()
            times.append((time.perf_counter() - started, time.process_time() - cpu))
        seconds = statistics.median(t for t, _ in times)
        per_cpu_s = mib * MIB / statistics.median(c for _, c in times) / 1e9
        rate = mib * MIB / seconds / 1e9
        rows.append({"what": what, "median_s": seconds, "GB_s": rate, "GB_per_cpu_s": per_cpu_s})
    return rows


def row(what: str, mib: int, answers: list[dict[str, float]]) -> dict[str, object]:
    """The median of several calls."""
    seconds = statistics.median(a["seconds"] for a in answers)
    found = {
        "what": what,
        "median_s": seconds,
        "worst_s": max(a["seconds"] for a in answers),
        "GB_s": mib * MIB / seconds / 1e9,
        "received_MB": statistics.median(a["received_bytes"] for a in answers) / 1e6,
        "cpu_s": statistics.median(a["cpu_s"] for a in answers),
        "sources": max(a["sources"] for a in answers),
    }
    say(f"  {what}: {seconds:.3f} s")
    return found


def loopback(mib: int, rounds: int) -> list[dict[str, object]]:
    """Two peers, then a holder and two receivers."""
    rows = []
    with ExitStack() as stack:
        peers = Peers(stack, 2, mib)
        for what, share in (("equal", 0.0), ("1 % of blocks differ", 0.01), ("all differ", 1.0)):
            rows.append(row(what, mib, [peers.sync([1], share) for _ in range(rounds)]))
    with ExitStack() as stack:
        peers = Peers(stack, 3, mib)
        rows.append(row("2 receivers", mib, [peers.sync([1, 2], 1.0) for _ in range(rounds)]))
    return rows


def wide_area(args: argparse.Namespace) -> list[dict[str, object]]:
    """One joiner, with one holder and with two."""
    rows = []
    for holders in (1, 2):
        with ExitStack() as stack:
            wan = stack.enter_context(
                Wan(holders + 2, delay_ms=args.delay_ms, loss=args.loss, mtu=9000, seed=0)
            )
            for host in range(holders + 1):
                wan.set_host(host, up_mbit=args.rate_mbit, down_mbit=10 * args.rate_mbit)
            peers = Peers(stack, holders + 1, args.wan_mib, wan)
            answers = [peers.sync([holders], 1.0) for _ in range(args.wan_rounds)]
            found = row(f"WAN, {holders} holder{'s' * (holders > 1)}", args.wan_mib, answers)
            rate = args.wan_mib * MIB * 8 / float(str(found["median_s"]))
            rows.append(found | {"of_uplinks": rate / (holders * args.rate_mbit * 1e6)})
    times = [float(str(each["median_s"])) for each in rows]
    rows[1]["of_one_holder"] = times[0] / times[1]
    return rows


def cell(value: object) -> str:
    """For the table."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--mib", type=int, default=256)
    add("--rounds", type=int, default=5)
    add("--wan", action="store_true")
    add("--wan-mib", type=int, default=256)
    add("--wan-rounds", type=int, default=1)
    add("--rate-mbit", type=float, default=100.0, help="up, of each host")
    add("--delay-ms", type=float, default=25.0, help="one way")
    add("--loss", type=float, default=0.0)
    add("--quick", action="store_true", help="a smoke test of some seconds")
    add("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.mib, args.rounds, args.wan_mib = 8, 1, 8
    return args


def main() -> None:
    """Measure, print."""
    args = parse()
    end_orderly_at_sigterm()
    found = origin()
    rows = hashing(args.mib, args.rounds) + loopback(args.mib, args.rounds)
    if args.wan:
        if reason := why_unavailable():
            say(f"--wan is skipped: {reason}")
        else:
            rows += wide_area(args)
    if args.json:
        print(json.dumps(found | {"rows": rows}))
        return
    names = ["median_s", "worst_s", "GB_s", "GB_per_cpu_s", "received_MB", "cpu_s", "sources"]
    names += ["of_uplinks", "of_one_holder"]
    cells = [[str(r["what"]), *(cell(r.get(name, "")) for name in names)] for r in rows]
    print_table(["what", *names], cells)
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], *(int(word) for word in sys.argv[3:6]))
    else:
        main()
