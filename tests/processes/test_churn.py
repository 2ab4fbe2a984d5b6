"""`ringhaul churn` as users start it: real processes, real faults, in short."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def churn(*options: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "ringhaul", "churn", "--json", *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def test_a_short_churn_finds_nothing_wrong(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    code, report = churn(
        "--peers", "3", "--seconds", "8", "--rate", "2", "--array-mib", "0.25",
        "--codec", "uint8+zstd", "--logs", str(logs),
    )  # fmt: skip

    assert report["problems"] == []
    assert code == 0
    assert report["rounds"] > 0
    assert report["calls"] > 0
    assert sum(report["faults"].values()) >= 5
    assert (logs / "facts.jsonl").stat().st_size > 0
    assert (logs / "coordinator.log").exists()


def test_a_world_of_one_churns_too() -> None:
    code, report = churn("--peers", "1", "--seconds", "3", "--array-mib", "0.01")

    assert report["problems"] == []
    assert code == 0
