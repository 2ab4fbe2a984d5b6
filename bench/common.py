"""What the benchmarks share: where a figure comes from, a coordinator, a table."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MIB = 1 << 20
GB = 1e9


def origin() -> dict[str, Any]:
    """The machine and the commit that a figure is of."""
    return {
        "machine": cpu_name(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def cpu_name() -> str:
    """As the kernel calls it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """Of the source tree; "+" for changes that are not committed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed else "")


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def coordinator_words(host: str = "127.0.0.1") -> list[str]:
    """The command line of a coordinator on a free port."""
    return [
        sys.executable,
        "-m",
        "ringhaul",
        "coordinator",
        "--listen",
        f"{host}:0",
        "--new",
        "--json",
    ]


def address_from(child: "subprocess.Popen[str]") -> str:
    """Where that coordinator, started with its stdout in a pipe, listens."""
    assert child.stdout is not None
    return str(json.loads(child.stdout.readline())["address"])


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]))


def end_orderly_at_sigterm() -> None:
    """So that what was started is ended too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def say(text: str) -> None:
    """A word to people; stdout is for figures."""
    print(text, file=sys.stderr, flush=True)
