"""Everybody restarts from checkpoints of different ages."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ringhaul import SharedState, connect
from ringhaul.testing.threads import Cluster, gather

EXAMPLE = Path(__file__).parents[2] / "examples" / "restart_from_checkpoint.py"


@pytest.mark.parametrize("revisions", [(3, 5, 4), (5, 5, 3), (0, 0, 1)])
def test_the_newest_checkpoint_wins_and_the_rest_are_brought_up_to_it(
    tmp_path: Path, revisions: tuple[int, ...]
) -> None:
    for place, revision in enumerate(revisions):
        arrays = {"w": np.full(400_000, revision, np.float32), "steps": np.array(revision)}
        SharedState(arrays, revision).save(tmp_path / str(place))

    with Cluster(lambda address: connect(address, min_world_size=3)) as cluster:
        states = [SharedState.load(tmp_path / str(place)) for place in range(3)]
        pairs = zip(cluster.drivers(3), states, strict=True)
        gather(
            driver.begin(lambda comm, mine=state: comm.sync_state(mine))  # type: ignore[misc]
            for driver, state in pairs
        )

    newest = max(revisions)
    assert [state.revision for state in states] == [newest] * 3
    for state in states:
        assert (state.arrays["w"] == newest).all()
        assert state.arrays["steps"] == newest


@pytest.mark.slow
def test_a_run_whose_processes_were_all_killed_goes_on_from_disk() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    begun = [line.split() for line in done.stdout.splitlines() if "goes on at" in line]
    found = [int(words[3].rstrip(",")) for words in begun]
    assert {int(words[-1]) for words in begun} == {max(found)}
    assert min(found) > 0
