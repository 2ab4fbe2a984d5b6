"""A peer process for tests: connects, loops over all-reduces, checks every result.

`python -m ringhaul.testing.peer ADDRESS INDEX [options]` prints one JSON line per event.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from typing import Any

import numpy as np

from ringhaul.communicator import Communicator, connect
from ringhaul.errors import RinghaulError
from ringhaul.testing.processes import check_sum, contribution


def say(event: str, **facts: Any) -> None:  # noqa: ANN401 - whatever JSON takes
    """Print one event."""
    sys.stdout.write(json.dumps({"event": event, "at": time.monotonic(), **facts}) + "\n")
    sys.stdout.flush()


def run_rounds(comm: Communicator, options: argparse.Namespace) -> None:
    """Loop; the array is restored before each round and checked after it."""
    own = contribution(options.index, options.count)
    pattern = contribution(0, options.count)
    usual_s = 0.0
    array = own.copy()
    out = np.empty_like(own) if options.out else None
    for round_index in range(options.rounds):
        if out is None:
            np.copyto(array, own)
        try:
            if options.admit:
                comm.admit()
            if round_index == options.die_in_round:
                threading.Timer(usual_s / 2, die).start()
            started = time.monotonic()
            info = comm.all_reduce(
                array, out=out, on_loss=options.on_loss, timeout_s=options.timeout_s
            )
        except RinghaulError as error:
            say(
                "error",
                round=round_index,
                kind=type(error).__name__,
                text=str(error),
                peers=error.peers,
                untouched=bool(np.array_equal(array, own)),
                world_size=comm.world_size,
            )
            if options.stop_on_error:
                return
            continue
        usual_s = time.monotonic() - started
        result = array if out is None else out
        say(
            "round",
            round=round_index,
            right=check_sum(result, info.contributors, pattern),
            contributors=info.contributors,
            attempts=info.attempts,
            seconds=usual_s,
            generation=comm.generation,
            world_size=comm.world_size,
        )


def die() -> None:
    """Say so, then end as SIGKILL ends a process."""
    say("dying")
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Parse the options, connect, loop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("index", type=int)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1_000_000)
    parser.add_argument("--min-world-size", type=int, default=1)
    parser.add_argument("--admit", action="store_true")
    parser.add_argument("--out", action="store_true")
    parser.add_argument("--on-loss", default="retry")
    parser.add_argument("--timeout-s", type=float)
    parser.add_argument("--die-in-round", type=int, help="in the middle of this all-reduce")
    parser.add_argument("--stop-on-error", action="store_true")
    options = parser.parse_args()
    name = f"w{options.index}"
    with connect(options.address, name=name, min_world_size=options.min_world_size) as comm:
        say("joined", peer=comm.peer_id, rank=comm.rank, world_size=comm.world_size)
        run_rounds(comm, options)
    say("left")


if __name__ == "__main__":
    main()
