"""`ringhaul bench`: what follows from figures, and real runs."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from ringhaul.cli.bench.measure import Row, row_of
from ringhaul.cli.bench.options import BenchOptions
from ringhaul.cli.bench.report import suggest
from ringhaul.testing.processes import CoordinatorProcess

MIB = 1 << 20


def row(streams: int | None, busbw: float, size_bytes: int = 64 * MIB) -> Row:
    """A row of two peers with that busbw."""
    return row_of(streams, size_bytes, 2, [size_bytes / busbw / 1e9])


def test_bandwidths_follow_from_the_median_of_the_slowest_peer() -> None:
    found = row_of(4, 1_000_000_000, 4, [1.0, 2.0, 9.0])

    assert (found.calls, found.median_s, found.worst_s) == (3, 2.0, 9.0)
    assert found.algbw_GB_s == 0.5
    assert found.busbw_GB_s == 0.75
    assert found.per_stream_GB_s == 0.1875


def test_the_library_is_not_said_to_use_a_number_of_streams_that_it_chooses() -> None:
    assert row(None, 1.0).per_stream_GB_s is None


@pytest.mark.parametrize(
    ("rows", "streams"),
    [
        ([row(None, 1.0), row(1, 0.5), row(8, 1.02)], None),
        ([row(None, 0.5), row(1, 0.2), row(4, 0.98), row(8, 1.0)], 4),
        ([row(1, 0.2), row(4, 0.5), row(8, 1.0)], 8),
        ([row(None, 1.0, MIB), row(8, 0.1, MIB), row(None, 0.1), row(8, 1.0)], 8),
    ],
)
def test_the_fewest_streams_that_are_as_good_as_any_are_suggested(
    rows: list[Row], streams: int | None
) -> None:
    assert suggest(tuple(rows)).streams == streams


@pytest.mark.parametrize(
    "wrong",
    [
        {"peers": 1},
        {"sizes_mib": ()},
        {"sizes_mib": (0.0,)},
        {"streams": (0,)},
        {"streams": (10_000,)},
        {"seconds": 0.0},
        {"local": True, "address": "example.org:1"},
    ],
)
def test_options_that_make_no_run_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        BenchOptions(**wrong)


@pytest.mark.parametrize(
    "other", [{"peers": 3}, {"sizes_mib": (1.0,)}, {"streams": (1,)}, {"seconds": 1.0}]
)
def test_peers_with_other_calls_have_another_fingerprint(other: dict[str, Any]) -> None:
    usual = BenchOptions()

    assert np.array_equal(usual.fingerprint(), BenchOptions(json=True).fingerprint())
    assert not np.array_equal(usual.fingerprint(), BenchOptions(**other).fingerprint())


def bench(*words: str) -> "subprocess.Popen[str]":
    """A run of some calls, started."""
    program = [sys.executable, "-m", "ringhaul", "bench", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*program, "--streams", "2", "--seconds", "0.01"], stdout=pipe, stderr=pipe, text=True
    )


@pytest.mark.slow
def test_a_local_run_prints_its_findings_and_a_suggestion() -> None:
    with bench("--local", "--peers", "3", "--mib", "0.0625,1", "--json") as child:
        out, errors = child.communicate(timeout=60)

    assert child.returncode == 0, errors
    found = json.loads(out)
    assert found["world_size"] == 3
    assert found["latency_s"] > 0
    cells = [(row["streams"], row["size_bytes"]) for row in found["rows"]]
    assert cells == [(None, 65536), (None, MIB), (2, 65536), (2, MIB)]
    assert set(found["suggestion"]) == {"streams", "reason"}


@pytest.mark.slow
def test_of_two_machines_one_prints_and_different_options_are_an_error() -> None:
    with CoordinatorProcess() as coordinator:
        for sizes, codes in ((("1", "1"), (0, 0)), (("1", "2"), (1, 1))):
            children = [bench(coordinator.address, "--mib", size) for size in sizes]
            texts = [child.communicate(timeout=60) for child in children]

            assert tuple(child.returncode for child in children) == codes, texts
            if codes == (0, 0):
                assert sorted("busbw" in out for out, _ in texts) == [False, True]
            else:
                assert all("different options" in errors for _, errors in texts)
