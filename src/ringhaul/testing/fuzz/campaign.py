"""Fuzz campaigns: `python -m ringhaul.testing fuzz --inputs 1000000 [--seed N] [--jobs 2]`.

A failure is told with the input that causes it; `--replay TARGET HEX` feeds that one again.
With `--atheris` (if it is installed) inputs are found by coverage instead of by our mutants.
"""

import argparse
import gc
import importlib
import itertools
import multiprocessing
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType

from ringhaul.testing.fuzz.machines import LyingCoordinator, LyingMember
from ringhaul.testing.fuzz.streams import Handshakes, IncomingSegments, Replies
from ringhaul.testing.fuzz.targets import EncodedSegments, Frames, Headers, Messages, Target

#: Inputs between two looks at the clock, and in one piece of work.
_BATCH = 500
#: Mutants of mutants, so deep.
_DEPTH_MAX = 4
#: Valid input that mutants were taken for is mutated further; so much of it is kept.
_POOL_MAX = 2000
_FAILURES_TOLD_MAX = 20

TARGETS: dict[str, Callable[[], Target]] = {
    target().name: target
    for target in (
        Messages,
        Frames,
        Headers,
        Handshakes,
        Replies,
        lambda: IncomingSegments("raw", is_posted=True),
        lambda: IncomingSegments("raw", is_posted=False),
        lambda: IncomingSegments("raw+zstd", is_posted=True),
        lambda: IncomingSegments("uint8+zstd", is_posted=True),
        lambda: IncomingSegments("uint4", is_posted=False),
        lambda: EncodedSegments("raw+zstd"),
        lambda: EncodedSegments("bf16"),
        lambda: EncodedSegments("uint8"),
        lambda: EncodedSegments("uint8-zp"),
        lambda: EncodedSegments("uint8+zstd"),
        lambda: EncodedSegments("uint4"),
        lambda: EncodedSegments("uint8-fine"),
        lambda: EncodedSegments("uint4-fine"),
        LyingMember,
        LyingCoordinator,
    )
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What a target raised, and on what."""

    target: str
    data: bytes
    error: str

    def __str__(self) -> str:
        """Tell how to see it again."""
        return (
            f"{self.target}: {self.error}\n    replay: python -m ringhaul.testing fuzz "
            f"--replay '{self.target}' {self.data.hex()}"
        )


@dataclass(slots=True)
class Tally:
    """What came of the inputs of one target."""

    inputs: int = 0
    #: Taken for valid: shows that mutants get past the first check.
    taken: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count another's too."""
        self.inputs += other.inputs
        self.taken += other.taken
        self.seconds += other.seconds
        self.failures += other.failures


def feed(target: Target, data: bytes, tally: Tally) -> bool:
    """Feed one input; whatever is raised is a failure."""
    tally.inputs += 1
    try:
        is_taken = target.feed(data)
    except Exception as error:  # that is what is looked for
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {str(error)[:300]} ({where.filename}:{where.lineno})"
        tally.failures.append(Failure(target.name, data, told))
        return False
    tally.taken += is_taken
    return is_taken


def run_target(name: str, seed: int, inputs: int) -> tuple[str, Tally]:
    """Feed mutants to one target; the same seed gives the same ones."""
    dice = random.Random(f"{name} {seed}")
    target = TARGETS[name]()
    tally = Tally()
    started_at = time.perf_counter()
    pool = list(target.originals(dice))
    for data in pool[:inputs]:
        feed(target, data, tally)
    while tally.inputs < inputs and len(tally.failures) < _FAILURES_TOLD_MAX:
        data = dice.choice(pool)
        for _ in range(dice.randint(1, _DEPTH_MAX)):
            data = target.mutate(data, dice)
        if feed(target, data, tally):
            if len(pool) < _POOL_MAX:
                pool.append(data)
            else:
                pool[dice.randrange(len(pool))] = data
    tally.seconds = time.perf_counter() - started_at
    return name, tally


def _pieces(names: Sequence[str], seed: int, inputs: int) -> Iterator[tuple[str, int, int]]:
    """Cut a campaign into pieces of work: every target gets its share, in many short turns."""
    share = -(-inputs // len(names))
    for turn in itertools.count():
        done = turn * _BATCH * 20
        if done >= share:
            return
        for name in names:
            yield name, seed + turn, min(_BATCH * 20, share - done)


def _run_piece(piece: tuple[str, int, int]) -> tuple[str, Tally]:
    return run_target(*piece)


def run(names: Sequence[str], seed: int, inputs: int, jobs: int = 1) -> dict[str, Tally]:
    """Feed `inputs` in all to the targets, and count what came of it."""
    tallies = {name: Tally() for name in names}
    pieces = _pieces(names, seed, inputs)
    if jobs == 1:
        for piece in pieces:
            name, tally = _run_piece(piece)
            tallies[name].add(tally)
        return tallies
    with multiprocessing.Pool(jobs) as pool:
        for name, tally in pool.imap_unordered(_run_piece, pieces):
            tallies[name].add(tally)
    return tallies


def _fuzz_by_coverage(name: str, inputs: int) -> None:
    """Let atheris find inputs for one target; it ends the process itself.

    It begins with what our mutants are made of. Only our own code is instrumented: all that is
    loaded takes minutes.
    """
    atheris = importlib.import_module("atheris")
    target = TARGETS[name]()
    for function in [f for f in gc.get_objects() if isinstance(f, FunctionType)]:
        module = function.__module__ or ""
        if module.startswith("ringhaul.") and not module.startswith("ringhaul.testing."):
            atheris.instrument_func(function)
    with tempfile.TemporaryDirectory(prefix="ringhaul-fuzz-") as corpus:
        for number, data in enumerate(target.originals(random.Random(0))):
            Path(corpus, str(number)).write_bytes(data)
        words = [sys.argv[0], f"-runs={inputs}", "-print_final_stats=1", corpus]
        atheris.Setup(words, lambda data: target.feed(bytes(data)) and None)
        atheris.Fuzz()


def main(words: Sequence[str]) -> int:
    """Run a campaign; the exit code is 0 only if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m ringhaul.testing fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="only these")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "HEX"))
    parser.add_argument("--atheris", action="store_true", help="needs one --target")
    options = parser.parse_args(words)
    if options.replay:
        name, data = options.replay
        print("taken" if TARGETS[name]().feed(bytes.fromhex(data)) else "refused")
        return 0
    names = options.target or list(TARGETS)
    if options.atheris:
        if len(names) != 1:
            parser.error("--atheris fuzzes one target: name it with --target")
        _fuzz_by_coverage(names[0], options.inputs)
        return 0
    started_at = time.perf_counter()
    tallies = run(names, options.seed, options.inputs, options.jobs)
    took_s = time.perf_counter() - started_at
    for name, tally in tallies.items():
        rate = tally.inputs / max(tally.seconds, 1e-9)
        share = 100 * tally.taken / max(tally.inputs, 1)
        print(f"{tally.inputs:9} {rate:9.0f}/s {share:5.1f} % valid  {name}")
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    for failure in failures[:_FAILURES_TOLD_MAX]:
        print(f"FAILED {failure}")
    total = sum(tally.inputs for tally in tallies.values())
    print(f"{total} inputs in {took_s:.1f} s: {total / took_s:.0f}/s; {len(failures)} failed")
    return 1 if failures else 0
