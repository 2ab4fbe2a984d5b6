"""All-reduce on loopback: ringhaul against gloo and a bare exchange of the same bytes.

Starts `--peers` processes; each runs every implementation in turn, in one run, so that the
ratios mean something on a noisy machine. Results are checked. GB = 1e9 bytes; busbw is
algbw x 2(n-1)/n. `python bench/all_reduce.py --peers 2 --mib 1,64 --json`
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

MIB = 1 << 20


def median_of(rounds: int, act: Any, before: Any, check: Any) -> list[float]:
    """Times of `rounds` calls, each checked; two more to warm up."""
    times = []
    for index in range(rounds + 2):
        before()
        started = time.perf_counter()
        act()
        elapsed = time.perf_counter() - started
        check()
        if index >= 2:
            times.append(elapsed)
    return times


def bench_ringhaul(args: argparse.Namespace, sizes: list[int], *, out: bool) -> dict[int, Any]:
    """In place, or with `out=`."""
    import ringhaul

    found: dict[int, Any] = {}
    with ringhaul.connect(
        args.coordinator, min_world_size=args.peers, streams=args.streams
    ) as comm:
        for size in sizes:
            own = np.full(size // 4, comm.rank + 1, np.float32)
            array = own.copy()
            target = np.empty_like(own) if out else None
            wanted = np.float32(sum(range(1, args.peers + 1)))

            def act(array: Any = array, target: Any = target) -> None:
                comm.all_reduce(array, out=target)

            def before(array: Any = array, own: Any = own) -> None:
                np.copyto(array, own)
                comm.barrier()

            def check(array: Any = array, target: Any = target, wanted: Any = wanted) -> None:
                assert (array if target is None else target).min() == wanted
                assert (array if target is None else target).max() == wanted

            found[size] = median_of(args.rounds, act, before, check)
    return found


def bench_gloo(args: argparse.Namespace, sizes: list[int]) -> dict[int, Any]:
    """PyTorch's gloo over the loopback interface."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{args.gloo_port}",
        rank=args.index,
        world_size=args.peers,
    )
    found: dict[int, Any] = {}
    for size in sizes:
        own = torch.full((size // 4,), float(args.index + 1))
        array = own.clone()
        wanted = float(sum(range(1, args.peers + 1)))

        def act(array: Any = array) -> None:
            dist.all_reduce(array)

        def before(array: Any = array, own: Any = own) -> None:
            array.copy_(own)
            dist.barrier()

        def check(array: Any = array, wanted: Any = wanted) -> None:
            assert array.min() == wanted
            assert array.max() == wanted

        found[size] = median_of(args.rounds, act, before, check)
    dist.destroy_process_group()
    return found


def bench_exchange(args: argparse.Namespace, sizes: list[int]) -> dict[int, Any]:
    """The limit: the bytes that a ring moves, sent and received by bare blocking sockets."""
    ports = [int(port) for port in args.exchange_ports.split(",")]
    listener = socket.create_server(("127.0.0.1", ports[args.index]))
    while True:
        try:
            after = socket.create_connection(("127.0.0.1", ports[(args.index + 1) % args.peers]))
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    previous, _ = listener.accept()
    found: dict[int, Any] = {}
    for size in sizes:
        wire = memoryview(bytearray(2 * (args.peers - 1) * size // args.peers))
        target = memoryview(bytearray(min(len(wire), MIB)))

        def act(wire: Any = wire, target: Any = target) -> None:
            sender = threading.Thread(target=after.sendall, args=(wire,))
            sender.start()
            left = len(wire)
            while left:
                left -= previous.recv_into(target[: min(left, len(target))])
            sender.join()

        found[size] = median_of(args.rounds, act, lambda: None, lambda: None)
    return found


def run_peer(args: argparse.Namespace) -> None:
    """One process: everything in turn; prints its times."""
    sizes = [int(float(mib) * MIB) for mib in args.mib.split(",")]
    found: dict[str, Any] = {
        "ringhaul out=": bench_ringhaul(args, sizes, out=True),
    }
    found["exchange"] = bench_exchange(args, sizes)
    try:
        found["gloo"] = bench_gloo(args, sizes)
    except ImportError:
        found["gloo"] = None
    args.coordinator = args.second_coordinator
    found["ringhaul in place"] = bench_ringhaul(args, sizes, out=False)
    print(json.dumps(found))


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def start_coordinator() -> tuple[subprocess.Popen[str], str]:
    """A coordinator process and its address."""
    words = ["-m", "ringhaul", "coordinator", "--listen", "127.0.0.1:0", "--json"]
    child = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert child.stdout is not None
    return child, json.loads(child.stdout.readline())["address"]


def main() -> None:
    """Start the peers, gather, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=2)
    parser.add_argument("--mib", default="0.0625,1,16,64")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--streams", type=int)
    parser.add_argument("--quick", action="store_true", help="a smoke test of some seconds")
    parser.add_argument("--json", action="store_true")
    for hidden in ("--coordinator", "--second-coordinator", "--exchange-ports"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--gloo-port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.index is not None:
        run_peer(args)
        return
    if args.quick:
        args.mib, args.rounds = "0.0625,4", 3
    coordinators = [start_coordinator(), start_coordinator()]
    words = [sys.executable, __file__, "--peers", str(args.peers), "--mib", args.mib]
    words += ["--rounds", str(args.rounds), "--gloo-port", str(free_port())]
    words += ["--coordinator", coordinators[0][1], "--second-coordinator", coordinators[1][1]]
    words += ["--exchange-ports", ",".join(str(free_port()) for _ in range(args.peers))]
    words += ["--streams", str(args.streams)] if args.streams else []
    try:
        children = [
            subprocess.Popen([*words, "--index", str(i)], stdout=subprocess.PIPE, text=True)
            for i in range(args.peers)
        ]
        outputs = [child.communicate()[0] for child in children]
        if any(child.returncode for child in children):
            sys.exit("a peer failed, see above")
    finally:
        for child, _ in coordinators:
            child.terminate()
            child.wait()
    report(args, [json.loads(text) for text in outputs])


def report(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Slowest peer per call; median and worst over the calls."""
    rows = []
    for name in ("ringhaul out=", "ringhaul in place", "gloo", "exchange"):
        if results[0][name] is None:
            print(f"{name}: not installed, skipped", file=sys.stderr)
            continue
        for size, times in results[0][name].items():
            slowest = [max(each) for each in zip(*(r[name][size] for r in results), strict=True)]
            median_s, bytes_ = statistics.median(slowest), int(size)
            busbw = bytes_ / median_s * 2 * (args.peers - 1) / args.peers / 1e9
            rows.append(
                {
                    "what": name,
                    "peers": args.peers,
                    "bytes": bytes_,
                    "median_s": median_s,
                    "worst_s": max(slowest),
                    "algbw_GB_s": bytes_ / median_s / 1e9,
                    "busbw_GB_s": busbw,
                    "calls": len(times),
                    "wrong": 0,
                }
            )
    if args.json:
        print(json.dumps({"machine": platform.processor(), "cores": os.cpu_count(), "rows": rows}))
        return
    print(f"{'what':18} {'MiB':>8} {'median ms':>10} {'worst ms':>10} {'algbw':>6} {'busbw':>6}")
    for row in sorted(rows, key=lambda row: row["bytes"]):
        print(
            f"{row['what']:18} {row['bytes'] / MIB:8.3f} {row['median_s'] * 1e3:10.2f} "
            f"{row['worst_s'] * 1e3:10.2f} {row['algbw_GB_s']:6.2f} {row['busbw_GB_s']:6.2f}"
        )


if __name__ == "__main__":
    main()
