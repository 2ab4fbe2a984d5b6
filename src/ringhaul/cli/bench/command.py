"""`ringhaul bench`, as typer reads it, and what it does."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Annotated

import typer
from rich.console import Console

from ringhaul.cli.bench.measure import Findings, measure
from ringhaul.cli.bench.options import BenchOptions
from ringhaul.cli.bench.report import print_findings, suggest
from ringhaul.errors import RinghaulError
from ringhaul.io.address import parse_address
from ringhaul.limits import DEFAULT_PORT

_DEFAULTS = BenchOptions()
_DEFAULT_MIB = ",".join(f"{size:g}" for size in _DEFAULTS.sizes_mib)
_DEFAULT_STREAMS = ",".join(map(str, _DEFAULTS.streams))
#: Not all was well.
EXIT_FAILED = 1
#: A local peer that does not leave by itself is killed.
LEAVING_S = 10.0


def bench_command(
    address: Annotated[
        str | None,
        typer.Argument(metavar="HOST:PORT", help="Coordinator; else RINGHAUL_COORDINATOR."),
    ] = None,
    peers: Annotated[
        int, typer.Option(help="Machines that take part; start this command on each.")
    ] = _DEFAULTS.peers,
    mib: Annotated[str, typer.Option(help="Array sizes.")] = _DEFAULT_MIB,
    streams: Annotated[
        str, typer.Option(help="Numbers of streams to try, besides the default.")
    ] = _DEFAULT_STREAMS,
    seconds: Annotated[
        float, typer.Option(help="For each size with each number of streams, about.")
    ] = _DEFAULTS.seconds,
    local: Annotated[
        bool, typer.Option("--local", help="Start a coordinator and all peers here, to try it.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Measure all-reduce between your machines, and suggest `streams=`.

    Start `ringhaul coordinator` where all can reach it, then this command with the same
    options on each machine. The peer of rank 0 prints. Exit code 0 only if all went well and
    every sum was right.
    """
    try:
        if address is not None:
            parse_address(address, DEFAULT_PORT)
        options = BenchOptions(
            address=address,
            peers=peers,
            sizes_mib=tuple(float(word) for word in mib.split(",") if word),
            streams=tuple(int(word) for word in streams.split(",") if word),
            seconds=seconds,
            json=as_json,
            quiet=quiet,
            local=local,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(run_bench(options))


def run_bench(options: BenchOptions) -> int:
    """Measure and print; the exit code."""

    def progress(text: str) -> None:
        if not options.quiet:
            print(text, file=sys.stderr, flush=True)

    try:
        with _here(options) as (here, children):
            findings, is_first = measure(here, progress)
            failed = [child for child in children if child.wait(LEAVING_S)]
    except (RinghaulError, OSError, subprocess.TimeoutExpired) as error:
        print(f"bench failed: {type(error).__name__}: {error}", file=sys.stderr)
        return EXIT_FAILED
    if failed:
        print("bench failed: a local peer ended with an error, see above", file=sys.stderr)
        return EXIT_FAILED
    if is_first or options.local:
        _print(options, findings)
    else:
        progress("done; the peer of rank 0 prints the figures")
    return 0


def _print(options: BenchOptions, findings: Findings) -> None:
    if options.json:
        suggestion = asdict(suggest(findings.rows))
        print(json.dumps({**findings.to_json(), "suggestion": suggestion}))
    else:
        print_findings(findings, Console())


@contextlib.contextmanager
def _here(
    options: BenchOptions,
) -> Iterator[tuple[BenchOptions, list["subprocess.Popen[str]"]]]:
    """What this process is to do; with `local`, the coordinator and the other peers run."""
    if not options.local:
        yield options, []
        return
    program = [sys.executable, "-m", "ringhaul"]
    with contextlib.ExitStack() as stack:

        def start(*words: str, stdout: int, stderr: int | None) -> "subprocess.Popen[str]":
            child = subprocess.Popen([*program, *words], stdout=stdout, stderr=stderr, text=True)
            stack.callback(child.wait)
            stack.callback(child.terminate)
            return child

        coordinator = start(
            *("coordinator", "--listen", "127.0.0.1:0", "--new", "--json"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert coordinator.stdout is not None
        line = coordinator.stdout.readline()
        if not line:
            raise OSError(f"the coordinator ended with exit code {coordinator.wait()}")
        address = json.loads(line)["address"]
        words = ["bench", address, "--peers", str(options.peers), "--quiet"]
        words += ["--mib", ",".join(map(str, options.sizes_mib))]
        words += ["--streams", ",".join(map(str, options.streams))]
        words += ["--seconds", str(options.seconds)]
        others = range(options.peers - 1)
        children = [start(*words, stdout=subprocess.DEVNULL, stderr=None) for _ in others]
        yield replace(options, address=address, local=False), children
