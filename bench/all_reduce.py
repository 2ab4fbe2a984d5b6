"""All-reduce on loopback: ringhaul, gloo, Open MPI, and a bare exchange of the same bytes.

    python bench/all_reduce.py
    python bench/all_reduce.py --peers 2 --mib 1,64 --only ringhaul,gloo --json

All are started once per number of peers and then called in turn, several passes over, so that
what disturbs the machine disturbs them alike; ratios are of passes, not of all. Results are
checked. GB = 1e9 bytes; algbw is array bytes per second; busbw is algbw x 2(n-1)/n; CPU seconds
are of all ranks together, per GB of array. What is not installed is skipped with a word:
gloo needs torch, Open MPI needs mpi4py and mpirun.
"""

import argparse
import contextlib
import importlib.util
import json
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import (
    GB,
    MIB,
    address_from,
    coordinator_words,
    end_orderly_at_sigterm,
    free_port,
    origin,
    print_table,
    say,
)

#: (what is reported, whose ranks do it), in the order of their turns.
TURNS = (
    ("ringhaul out=", "ringhaul"),
    ("gloo", "gloo"),
    ("ringhaul in place", "ringhaul"),
    ("Open MPI", "mpi"),
    ("exchange", "exchange"),
    ("ringhaul 8 at once", "ringhaul"),
)
#: Several at once are compared with one of their sum; on small arrays that says nothing.
AT_ONCE = "ringhaul 8 at once"
AT_ONCE_BYTES_MIN = 16 * MIB
OURS = ("ringhaul out=", "ringhaul in place")
#: A visit calls as often as moves so many bytes, between these bounds.
VISIT_BYTES, VISIT_CALLS_MIN, VISIT_CALLS_MAX = 160 * MIB, 2, 20
START_S = 120.0
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
MPIRUN += ["--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"]


class Ranks:
    """The ranks of one implementation."""

    def __init__(self, kind: str, args: argparse.Namespace, peers: int, place: str) -> None:
        self.children: list[subprocess.Popen[bytes]] = []
        self._lines: list[Any] = []
        self.skipped: str | None = None
        if kind == "mpi":
            if shutil.which("mpirun") is None:
                self.skipped = "mpirun is not installed"
            elif importlib.util.find_spec("mpi4py") is None:
                self.skipped = "mpi4py is not installed"
            if self.skipped is not None:
                return
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(START_S)
        port = listener.getsockname()[1]
        script = str(Path(__file__).with_name("reduce_worker.py"))

        def words(rank: int) -> list[str]:
            rest = [str(port), str(rank), str(peers), place]
            rest += [str(args.streams)] if args.streams else []
            return [sys.executable, script, kind, *rest]

        if kind == "mpi":
            self.children = [subprocess.Popen([*MPIRUN, "-np", str(peers), *words(0)])]
        else:
            self.children = [subprocess.Popen(words(rank)) for rank in range(peers)]
        with listener:
            for _ in range(peers):
                self._lines.append(listener.accept()[0].makefile("rw", encoding="utf-8"))
        for hello in self._answers():
            self.skipped = hello.get("skipped", self.skipped)

    def measure(self, **order: Any) -> dict[str, Any]:
        """Times per call of the slowest rank, CPU of all; or why not."""
        for lines in self._lines:
            lines.write(json.dumps(order) + "\n")
            lines.flush()
        answers = self._answers()
        if "skipped" in answers[0]:
            return {"skipped": answers[0]["skipped"]}
        seconds = zip(*(answer["seconds"] for answer in answers), strict=True)
        cpu = zip(*(answer["cpu_s"] for answer in answers), strict=True)
        return {"seconds": [max(s) for s in seconds], "cpu_s": [sum(s) for s in cpu]}

    def _answers(self) -> list[dict[str, Any]]:
        texts = [lines.readline() for lines in self._lines]
        if not all(texts):
            sys.exit("a rank failed, see above")
        return [json.loads(text) for text in texts]

    def close(self) -> None:
        """Let the ranks leave."""
        for lines in self._lines:
            lines.close()
        for child in self.children:
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()


@contextlib.contextmanager
def started(args: argparse.Namespace, peers: int) -> Iterator[dict[str, Ranks]]:
    """Every implementation that is here, its ranks connected and idle."""
    ranks: dict[str, Ranks] = {}
    with contextlib.ExitStack() as stack:
        coordinator = subprocess.Popen(
            coordinator_words(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        stack.callback(coordinator.wait)
        stack.callback(coordinator.terminate)
        places = {
            "ringhaul": address_from(coordinator),
            "gloo": f"127.0.0.1:{free_port()}",
            "mpi": "-",
            "exchange": ",".join(str(free_port()) for _ in range(peers)),
        }
        for kind in args.only:
            made = Ranks(kind, args, peers, places[kind])
            stack.callback(made.close)
            if made.skipped is None:
                ranks[kind] = made
            else:
                say(f"{kind}: skipped, {made.skipped}")
        yield ranks


def measure(args: argparse.Namespace, peers: int) -> list[dict[str, Any]]:
    """All implementations in turn, pass after pass; a row for each and each size."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    refused: set[str] = set()
    with started(args, peers) as ranks:
        for number in range(args.passes):
            say(f"{peers} peers, pass {number + 1} of {args.passes}")
            for bytes_count in args.mib:
                for what, kind in TURNS:
                    if kind not in ranks or what in refused:
                        continue
                    if what == AT_ONCE and bytes_count < AT_ONCE_BYTES_MIN:
                        continue
                    calls = args.calls or calls_per_visit(bytes_count)
                    visit = ranks[kind].measure(mode=what, bytes_count=bytes_count, calls=calls)
                    if "skipped" in visit:
                        say(f"{what}: skipped, {visit['skipped']}")
                        refused.add(what)
                    else:
                        found.setdefault((what, bytes_count), []).append(visit)
    order = [what for what, _ in TURNS]
    keys = sorted(found, key=lambda key: (key[1], order.index(key[0])))
    return [row_of(found, what, bytes_count, peers) for what, bytes_count in keys]


def calls_per_visit(bytes_count: int) -> int:
    """Few of the large, many of the small."""
    return max(VISIT_CALLS_MIN, min(VISIT_CALLS_MAX, VISIT_BYTES // bytes_count))


def row_of(found: dict[Any, Any], what: str, bytes_count: int, peers: int) -> dict[str, Any]:
    """What is reported of one implementation and one size."""
    visits = found[what, bytes_count]
    seconds = [second for visit in visits for second in visit["seconds"]]
    cpu_s = [second for visit in visits for second in visit["cpu_s"]]
    algbw = bytes_count / statistics.median(seconds) / GB
    return {
        "what": what,
        "peers": peers,
        "bytes": bytes_count,
        "calls": len(seconds),
        "median_s": statistics.median(seconds),
        "worst_s": max(seconds),
        "algbw_GB_s": algbw,
        "busbw_GB_s": algbw * 2 * (peers - 1) / peers,
        "cpu_s_per_GB": statistics.fmean(cpu_s) / (bytes_count / GB),
        "times_as_fast": {
            ours: ratio(found[ours, bytes_count], visits)
            for ours in OURS
            if (ours, bytes_count) in found and ours != what
        },
    }


def ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """How many times as fast we are: the median over the passes."""
    return statistics.median(
        statistics.median(b["seconds"]) / statistics.median(a["seconds"])
        for a, b in zip(ours, theirs, strict=True)
    )


def report(rows: list[dict[str, Any]]) -> None:
    """The table for people."""
    head = ["what", "peers", "MiB", "median ms", "worst ms", "algbw GB/s", "busbw GB/s"]
    head += ["CPU s/GB", "out= is x", "in place is x"]
    table = [
        [
            row["what"],
            str(row["peers"]),
            f"{row['bytes'] / MIB:g}",
            f"{row['median_s'] * 1e3:.2f}",
            f"{row['worst_s'] * 1e3:.2f}",
            f"{row['algbw_GB_s']:.3f}",
            f"{row['busbw_GB_s']:.3f}",
            f"{row['cpu_s_per_GB']:.2f}",
            *(f"{row['times_as_fast'][o]:.2f}" if o in row["times_as_fast"] else "" for o in OURS),
        ]
        for row in rows
    ]
    print_table(head, table)
    print("out= is x, in place is x: how many times as fast ringhaul is, in the same pass")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    kinds = ["ringhaul", "gloo", "mpi", "exchange"]
    add("--peers", default="2,3,4", help="numbers of processes (default: 2,3,4)")
    add("--mib", default="0.0625,1,16,64,256", help="array sizes")
    add("--passes", type=int, default=5, help="each gets so many turns (default: 5)")
    add("--calls", type=int, help="per turn (default: 2 of the large, 20 of the small)")
    add("--streams", type=int, help="of ringhaul")
    add("--only", default=",".join(kinds), help="as ringhaul,gloo,mpi,exchange")
    add("--quick", action="store_true", help="a smoke test of some seconds")
    add("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.peers, args.mib, args.passes, args.calls = "2", "0.0625,4,16", 1, 3
        args.only = "ringhaul,exchange"
    args.peers = [int(word) for word in args.peers.split(",")]
    args.mib = [int(float(word) * MIB) // 4 * 4 for word in args.mib.split(",")]
    args.only = args.only.split(",")
    if unknown := set(args.only) - set(kinds):
        parser.error(f"--only: {sorted(unknown)} is none of {kinds}")
    return args


def main() -> None:
    """Start the peers, gather, print the table."""
    args = parse()
    end_orderly_at_sigterm()
    found = origin()
    rows = [row for peers in args.peers for row in measure(args, peers)]
    if args.json:
        print(json.dumps(found | {"rows": rows}))
        return
    report(rows)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
