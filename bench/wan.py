"""All-reduce over an emulated wide-area network on this machine, against bulk TCP on that wire.

    python bench/wan.py --peers 2,4 --rate-mbit 1000 --delay-ms 50 --mib 256
    python bench/wan.py --throttle-one 0.05 --streams 8 --reset-one --silence-one

Every host has an uplink and a downlink of `--rate-mbit`, and is `--delay-ms` one way from any
other; the coordinator is a further host. Root on Linux; the TCP under test is the kernel's.
Shares: busbw (algbw x 2(n-1)/n, what one link carries) of the link's rate, and of the best bulk
TCP with any number of streams. Cold: the first call after connecting. Results are checked.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from bulk import measure
from common import (
    MIB,
    address_from,
    coordinator_words,
    end_orderly_at_sigterm,
    origin,
    print_table,
    say,
)
from peer_worker import Worker, combined, together

from ringhaul.testing.wan import Wan, why_unavailable

Row = dict[str, Any]
#: The part of a call after which a connection is reset or silenced.
DISTURB_AT = 0.4
#: The connection that sent most within this is the one.
WINDOW_S = 0.03
#: A connection carried data if it carried such a share of what its path did.
DATA_SHARE = 0.01


class Bench:
    """One network of so many peers, and what was found on it."""

    def __init__(self, args: argparse.Namespace, peers: int) -> None:
        self.args, self.peers = args, peers
        self.rows: list[Row] = []
        self.best_bulk = 0.0

    def run(self) -> None:
        """Everything that was asked for, in turn."""
        args = self.args
        with Wan(
            self.peers + 1,
            delay_ms=args.delay_ms,
            loss=args.loss,
            buffer_ms=args.buffer_ms,
            mtu=args.mtu,
            seed=args.seed,
            congestion=args.congestion,
        ) as wan:
            for host in range(self.peers):
                wan.set_host(host, up_mbit=args.rate_mbit, down_mbit=args.rate_mbit)
            for streams in args.bulk_streams:
                self.bulk(wan, streams)
            for streams in args.streams:
                with self.ring(wan, streams) as workers:
                    self.calls(wan, workers, streams)
                    self.disturbances(wan, workers, streams)
            stats = wan.stats()
            self.wire = {
                "late_ms_mean": round(stats.late_ms_mean, 2),
                "late_ms_max": round(stats.late_ms_max, 1),
                "cpu_s": stats.cpu_s,
                "gigabytes": round(stats.delivered_bytes / 1e9, 2),
                "pieces": stats.pieces,
            }

    @contextlib.contextmanager
    def ring(self, wan: Wan, streams: int | None):
        """Peers on their hosts, ready for orders; a coordinator on the last host."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        words = coordinator_words(wan.address(self.peers))
        coordinator = wan.spawn(
            self.peers, words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        address = address_from(coordinator)
        workers = []
        for host in range(self.peers):
            start = lambda words, host=host: wan.spawn(host, words, **pipes)  # noqa: E731
            workers.append(Worker(start, address, self.peers, host, streams))
        yield workers
        for worker in workers:
            worker.close()
        coordinator.terminate()
        coordinator.wait()

    # -- what is measured ---------------------------------------------------------------------

    def bulk(self, wan: Wan, streams: int) -> None:
        """The rate of plain TCP from host 0 to host 1."""
        args = self.args
        name, bits = measure(wan.spawn, wan.address(1), streams, args.bulk_s, args.bulk_omit_s)
        self.best_bulk = max(self.best_bulk, bits)
        self.add(f"{name}, {streams} streams", bits / 8, {})

    def calls(self, wan: Wan, workers: list[Worker], streams: int | None) -> None:
        """Cold, warm, and several at once, per codec."""
        args = self.args
        name = f"ringhaul, {streams or 'default'} streams"
        latency = [together(workers, do="barrier")["seconds"] for _ in range(5)]
        self.add(f"{name}: barrier", None, {"median_s": statistics.median(latency)})
        if args.codec != ["raw"]:
            together(workers, do="prepare")
        is_cold = True
        for codec in args.codec:
            fields = {"do": "all_reduce", "mib": args.mib, "codec": codec}
            if is_cold:
                self.call(f"{name}: cold, {codec}", [together(workers, **fields)])
                is_cold = False
            warm = [together(workers, **fields) for _ in range(args.rounds)]
            self.call(f"{name}: warm, {codec}", warm)
        fields = {"do": "all_reduce", "mib": args.mib, "calls": args.calls}
        many = [together(workers, **fields) for _ in range(args.rounds)]
        self.call(f"{name}: {args.calls} at once", many)

    def disturbances(self, wan: Wan, workers: list[Worker], streams: int | None) -> None:
        """One connection of several is slow, reset, or silent."""
        args = self.args
        name = f"ringhaul, {streams or 'default'} streams"
        if args.throttle_one:
            self.throttle_one(wan, workers, name)
        for what, act in (("reset", wan.reset), ("silenced", wan.silence)):
            if getattr(args, {"reset": "reset_one", "silenced": "silence_one"}[what]):
                usual_s = self.call_once(workers)["seconds"]
                target = self.next_host(wan, workers)
                for worker in workers:
                    worker.order(do="all_reduce", mib=args.mib)
                time.sleep(DISTURB_AT * usual_s)
                before = {flow.key: flow.bytes_count for flow in wan.flows(0, target)}
                time.sleep(WINDOW_S)
                flows = wan.flows(0, target)
                act(max(flows, key=lambda flow: flow.bytes_count - before.get(flow.key, 0)))
                answer = combined([worker.answer() for worker in workers])
                self.call(f"{name}: one {what} in a call", [answer], {"undisturbed_s": usual_s})

    def throttle_one(self, wan: Wan, workers: list[Worker], name: str) -> None:
        """Each connection gets its share of the link and no more, then one nearly nothing."""
        flows = self.data_flows(wan, workers)
        share, count = self.args.throttle_one, len(flows)
        each_mbit = self.args.rate_mbit / count
        for a, b in wan.pairs():
            if self.peers not in (a, b):
                wan.cap_flows(a, b, each_mbit)
        self.call_once(workers)
        before = [self.call_once(workers) for _ in range(self.args.rounds)]
        self.call(f"{name}: each capped", before, {"connections": count})
        wan.throttle(flows[0], share * each_mbit)
        self.call_once(workers)
        after = [self.call_once(workers) for _ in range(self.args.rounds)]
        ratio = median_s(before) / median_s(after)
        facts = {"of_remaining": ratio / ((count - 1 + share) / count), "connections": count}
        self.call(f"{name}: one of them at {share:.0%}", after, facts)
        for a, b in wan.pairs():
            wan.cap_flows(a, b, None)

    def data_flows(self, wan: Wan, workers: list[Worker]) -> list[Any]:
        """The connections from rank's host 0 that carry an operation, busiest first."""
        target = self.next_host(wan, workers)
        before = {flow.key: flow.bytes_count for flow in wan.flows(0, target)}
        self.call_once(workers)
        grown = {f: f.bytes_count - before.get(f.key, 0) for f in wan.flows(0, target)}
        least = DATA_SHARE * sum(grown.values())
        busy = [flow for flow, count in grown.items() if count > least]
        return sorted(busy, key=lambda flow: -grown[flow])

    def next_host(self, wan: Wan, workers: list[Worker]) -> int:
        """The host that host 0 sends to: the ring's order is the coordinator's choice."""
        others = range(1, self.peers)
        before = [sum(flow.bytes_count for flow in wan.flows(0, b)) for b in others]
        self.call_once(workers)
        after = [sum(flow.bytes_count for flow in wan.flows(0, b)) for b in others]
        grown = [b - a for a, b in zip(before, after, strict=True)]
        return 1 + grown.index(max(grown))

    def call_once(self, workers: list[Worker]) -> Row:
        """One call, nothing reported."""
        return together(workers, do="all_reduce", mib=self.args.mib)

    # -- what is reported ---------------------------------------------------------------------

    def call(self, what: str, answers: list[Row], more: Row | None = None) -> None:
        """Add a row about calls of the usual size."""
        if "skipped" in answers[0]:
            say(f"{what}: skipped, {answers[0]['skipped']}")
            return
        median = median_s(answers)
        algbw = self.args.mib * MIB / median
        facts = {
            "median_s": median,
            "worst_s": max(answer["seconds"] for answer in answers),
            "calls": len(answers),
            "algbw_GB_s": algbw / 1e9,
            "cpu_s_per_GB": statistics.median(a["cpu_s"] for a in answers)
            / (self.args.mib * MIB / 1e9),
            "attempts": max(answer["attempts"] for answer in answers),
        }
        self.add(what, algbw * 2 * (self.peers - 1) / self.peers, facts | (more or {}))

    def add(self, what: str, bytes_per_s: float | None, facts: Row) -> None:
        """Add a row; `bytes_per_s` is what one link carried."""
        row: Row = {"peers": self.peers, "what": what, **facts}
        if bytes_per_s is not None:
            bits = bytes_per_s * 8
            row |= {"busbw_GB_s": bytes_per_s / 1e9, "of_link": bits / self.args.rate_mbit / 1e6}
            row["of_best_bulk"] = bits / self.best_bulk if self.best_bulk else None
        self.rows.append(row)
        say(f"  n={self.peers} {what}: {summary(row)}")


def median_s(answers: list[Row]) -> float:
    """Median seconds."""
    return float(statistics.median(answer["seconds"] for answer in answers))


def summary(row: Row) -> str:
    """One row while it runs."""
    words = [f"{row['median_s']:.3f} s"] if "median_s" in row else []
    words += [f"{row['of_link']:.0%} of the link"] if "of_link" in row else []
    return ", ".join(words)


def report(rows: list[Row]) -> None:
    """The table for people."""

    def cell(row: Row, name: str, form: str) -> str:
        return "" if row.get(name) is None else format(row[name], form)

    table = [
        [
            row["what"],
            str(row["peers"]),
            cell(row, "median_s", ".3f"),
            cell(row, "worst_s", ".3f"),
            cell(row, "algbw_GB_s", ".4f"),
            cell(row, "busbw_GB_s", ".4f"),
            cell(row, "of_link", ".0%"),
            cell(row, "of_best_bulk", ".0%"),
            cell(row, "of_remaining", ".0%"),
            cell(row, "cpu_s_per_GB", ".2f"),
            cell(row, "attempts", "d"),
        ]
        for row in rows
    ]
    head = ["what", "peers", "median s", "worst s", "algbw GB/s", "busbw GB/s", "of link"]
    print_table([*head, "of bulk TCP", "of remaining", "CPU s/GB", "attempts"], table)


def parse() -> argparse.Namespace:
    """The command line."""

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",") if word]

    def streams(text: str) -> list[int | None]:
        return [None if word == "default" else int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--peers", type=numbers, default=[2, 4], help="world sizes (default: 2,4)")
    add("--rate-mbit", type=float, default=1000.0)
    add("--delay-ms", type=float, default=50.0, help="one way")
    add("--loss", type=float, default=0.0, help="share of packets, as 0.0001")
    add("--buffer-ms", type=float, default=100.0, help="of each drop-tail buffer")
    add("--mtu", type=int, default=9000)
    add("--seed", type=int, default=0, help="of the losses")
    add("--congestion", help="as cubic, bbr; default: the machine's")
    add("--mib", type=float, default=256.0)
    add("--rounds", type=int, default=3, help="warm calls")
    add("--calls", type=int, default=8, help="in flight at once, of MIB / CALLS each")
    add("--streams", type=streams, default=[None], help="as default,1,8")
    add("--codec", type=lambda text: text.split(","), default=["raw"], help="as raw,uint8")
    add("--bulk-streams", type=numbers, default=[1, 8, 16])
    add("--bulk-s", type=float, default=8.0, help="seconds of bulk TCP that count")
    add("--bulk-omit-s", type=float, default=3.0, help="seconds before, which do not")
    add("--throttle-one", type=float, default=0.0, metavar="SHARE")
    add("--reset-one", action="store_true")
    add("--silence-one", action="store_true")
    add("--quick", action="store_true", help="a smoke test of some seconds")
    add("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.peers, args.mib, args.rounds, args.rate_mbit, args.delay_ms = [2], 2.0, 2, 200.0, 5.0
        args.bulk_streams, args.bulk_s, args.bulk_omit_s = [2], 2.0, 0.5
    return args


def main() -> None:
    """Emulate, measure, print."""
    args = parse()
    end_orderly_at_sigterm()
    if reason := why_unavailable():
        say(f"skipped: {reason}")
        sys.exit(0)
    rows, wires = [], []
    found = origin()
    for peers in args.peers:
        bench = Bench(args, peers)
        bench.run()
        rows += bench.rows
        wires.append({"peers": peers, **bench.wire})
    network = {name: getattr(args, name) for name in ("rate_mbit", "delay_ms", "loss", "mtu")}
    network |= {"buffer_ms": args.buffer_ms, "congestion": args.congestion}
    if args.json:
        print(json.dumps(found | {"network": network, "rows": rows, "wire": wires}))
        return
    report(rows)
    print(json.dumps(found))
    for wire in wires:
        print(
            f"the wire, {wire['peers']} peers: {wire['gigabytes']} GB, {wire['cpu_s']:.1f} s of "
            f"CPU, on average {wire['late_ms_mean']} ms late, {wire['pieces']}"
        )


if __name__ == "__main__":
    main()
