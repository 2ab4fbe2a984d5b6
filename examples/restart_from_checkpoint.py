"""A run whose coordinator and peers were all killed goes on from disk.

    python examples/restart_from_checkpoint.py

Starts a coordinator and three workers on this machine, kills all of them with SIGKILL, and starts
them again. The checkpoints they find are of different ages: the newest one wins, and the others
are brought up to it. A worker is the program you would write:

    python examples/restart_from_checkpoint.py --worker ADDRESS FILE NAME STEPS
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from local import run_example, shielded

import ringhaul

WORKERS = 3
#: Of the whole training, unless it is late.
STEPS = 60
ENDLESS = 1_000_000
#: Everybody is killed when some worker has come so far.
KILLED_AT = 25


def worker(address: str, file: Path, name: str, steps: int) -> None:
    """Train, and save now and then."""
    params = {"weights": np.zeros(200_000, np.float32), "step": np.zeros(1, np.int64)}
    state = ringhaul.SharedState(params)
    if file.exists():
        state.restore(file)
    found = state.revision
    with ringhaul.connect(address, name=name, min_world_size=WORKERS) as comm:
        comm.sync_state(state)  # of all that were found, the newest
        print(f"{name} found revision {found}, goes on at {state.revision}", flush=True)
        every = 4 + int(name[-1])  # not all at once: checkpoints are of different ages
        while params["step"][0] < steps:
            gradient = np.full_like(params["weights"], -1.0)
            comm.all_reduce(gradient, op="avg")
            params["weights"] -= gradient
            params["step"] += 1
            state.revision += 1
            if params["step"][0] % every == 0:
                state.save(file)
            print(f"{name} step {params['step'][0]}", flush=True)
            time.sleep(0.02)
    right = bool((params["weights"] == params["step"][0]).all())
    print(f"{name} ends, all weights are {params['step'][0]}: {right}", flush=True)


@contextlib.contextmanager
def started(folder: Path, steps: int) -> Iterator[list[subprocess.Popen[str]]]:
    """The workers and their coordinator; at the end all are killed with SIGKILL."""
    words = [sys.executable, "-m", "ringhaul", "coordinator", "--listen", "127.0.0.1:0", "--json"]
    pipes = {"stdout": subprocess.PIPE, "text": True}
    with shielded():
        coordinator = subprocess.Popen(words, stderr=subprocess.DEVNULL, **pipes)
    workers = []
    try:
        address = json.loads(coordinator.stdout.readline())["address"]
        for number in range(WORKERS):
            name = f"worker{number}"
            file = str(folder / f"{name}.safetensors")
            words = [sys.executable, __file__, "--worker", address, file, name, str(steps)]
            with shielded():
                workers.append(subprocess.Popen(words, **pipes))
        yield workers
    finally:
        for child in [coordinator, *workers]:
            child.kill()
            child.wait()


def main() -> None:
    """Run, kill all, run again to the end."""
    with tempfile.TemporaryDirectory() as name:
        with started(Path(name), ENDLESS) as workers:
            for line in workers[0].stdout:
                if line.split()[1:] == ["step", str(KILLED_AT)]:
                    break
        print(f"all killed after step {KILLED_AT}; started again:")

        with started(Path(name), STEPS) as workers:
            told = [child.communicate()[0].splitlines() for child in workers]
    for lines in told:
        print("\n".join([lines[0], lines[-1]]))
    ends = [lines[-1].endswith("True") and "goes on at" in lines[0] for lines in told]
    sys.exit(0 if all(ends) else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    else:
        run_example(main)
