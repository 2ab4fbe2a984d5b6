"""Bulk TCP with n streams: iperf3 where it is installed, a few lines of Python where not.

`measure(...)` gives bits per second, and the name of what measured.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: `spawn(host, words, **popen_options)`.
Spawn = Callable[..., "subprocess.Popen[str]"]
BLOCK = bytes(1 << 20)
#: To reach the iperf3 server that was just started.
ATTEMPTS_MAX = 50


def measure(
    spawn: Spawn, address: str, streams: int, seconds: float, omit_s: float
) -> tuple[str, float]:
    """From host 0 to host 1, which has that address; the first `omit_s` do not count."""
    if shutil.which("iperf3"):
        return "iperf3", iperf3(spawn, address, streams, seconds, omit_s)
    words = [sys.executable, str(Path(__file__))]
    options = {"stdout": subprocess.PIPE, "text": True}
    numbers = [str(streams), str(seconds), str(omit_s)]
    server = spawn(1, [*words, "receive", *numbers], **options)
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    spawn(0, [*words, "send", *numbers, address, port], **options)
    return "Python TCP", float(server.communicate()[0])


def iperf3(spawn: Spawn, address: str, streams: int, seconds: float, omit_s: float) -> float:
    """Bits per second, by iperf3."""
    server = spawn(1, ["iperf3", "-s", "-1", "-J"], stdout=subprocess.DEVNULL)
    words = ["iperf3", "-c", address, "-P", str(streams), "-J", "--get-server-output"]
    words += ["-t", str(seconds), "-O", str(omit_s)]
    for _ in range(ATTEMPTS_MAX):
        report = json.loads(spawn(0, words, stdout=subprocess.PIPE).communicate()[0])
        if "unable to connect" not in report.get("error", ""):
            break
        time.sleep(0.1)  # the server does not say when it listens
    server.kill()
    server.wait()
    if "error" in report:
        raise SystemExit(f"iperf3: {report['error']}")
    return received_bits(report)


def received_bits(report: dict[str, Any]) -> float:
    """Bits per second at the receiver, over its whole intervals after what is omitted.

    The total that iperf3 gives counts what lay in buffers when the time began.
    """
    sums = [each["sum"] for each in report["server_output_json"]["intervals"]]
    whole = [each for each in sums if not each["omitted"] and each["seconds"] > 0.9]
    return sum(each["bytes"] for each in whole) * 8 / sum(each["seconds"] for each in whole)


def receive(streams: int, seconds: float, omit_s: float) -> None:
    """Print the port, then the bits per second that came."""
    counts = [0] * streams
    listener = socket.create_server(("", 0))
    print(listener.getsockname()[1], flush=True)

    def read(sock: socket.socket, number: int) -> None:
        block = bytearray(1 << 20)
        while count := sock.recv_into(block):
            counts[number] += count

    for number in range(streams):
        sock = listener.accept()[0]
        threading.Thread(target=read, args=(sock, number), daemon=True).start()
    time.sleep(omit_s)
    before, started = sum(counts), time.monotonic()
    time.sleep(seconds)
    print((sum(counts) - before) * 8 / (time.monotonic() - started), flush=True)


def send(streams: int, seconds: float, omit_s: float, address: str, port: int) -> None:
    """Send as fast as it goes, somewhat longer than is measured."""

    def write(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the receiver has seen enough
            while True:
                sock.sendall(BLOCK)

    for _ in range(streams):
        sock = socket.create_connection((address, port))
        threading.Thread(target=write, args=(sock,), daemon=True).start()
    time.sleep(omit_s + seconds + 1)


if __name__ == "__main__":
    _, mode, *rest = sys.argv
    if mode == "receive":
        receive(int(rest[0]), float(rest[1]), float(rest[2]))
    else:
        send(int(rest[0]), float(rest[1]), float(rest[2]), rest[3], int(rest[4]))
