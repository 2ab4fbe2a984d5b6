"""Kernels are made beside the program, once, and whatever goes wrong is no trouble to it."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from ringhaul import compiled, connect
from ringhaul.ring.twins import find_twin, install_twins, installed_twins
from ringhaul.testing.threads import Cluster, together

PROGRAM = """
from ringhaul import compiled
thread = compiled.start()
assert compiled.start() is thread
"""
WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
from ringhaul import compiled
import importlib.util
importlib.util.find_spec = lambda name: None
assert compiled.start() is None
"""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before, start = installed_twins(), compiled.start
    start.cache_clear()
    install_twins({})
    yield
    start.cache_clear()
    install_twins(before)


def run(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_a_program_without_the_extra_goes_on_with_numpy() -> None:
    assert run(WITHOUT_NUMBA).returncode == 0


def test_a_program_that_ends_while_kernels_are_compiled_ends_well() -> None:
    found = run(PROGRAM)

    assert (found.returncode, found.stderr) == (0, "")


def test_what_goes_wrong_is_logged_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise OSError("no LLVM here")

    table = SimpleNamespace(compile_twins=fail)
    monkeypatch.setattr("importlib.import_module", lambda _: table)
    monkeypatch.setattr(compiled, "is_available", lambda: True)
    thread = compiled.start()
    assert thread is not None
    thread.join()

    assert "OSError: no LLVM here" in caplog.text
    assert find_twin("encode") is None


def test_kernels_that_are_not_wanted_any_more_are_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("numba")
    caplog.set_level(logging.INFO)

    assert compiled.load(lambda: False) == 0
    assert find_twin("encode") is None


def test_loaded_kernels_are_used() -> None:
    pytest.importorskip("numba")

    assert compiled.load() > 10

    encode = find_twin("encode", np.zeros(3, np.float32))
    assert encode is not None


@pytest.mark.parametrize(
    ("codec", "dtype", "count", "starts"),
    [
        ("uint8", "float32", 1 << 18, True),
        ("raw", "float16", 1 << 19, True),
        ("raw", "float32", 1 << 18, False),
        ("uint8", "float32", 1000, False),
    ],
)
def test_large_calls_that_need_kernels_have_them_made(
    monkeypatch: pytest.MonkeyPatch, codec: str, dtype: str, count: int, starts: bool
) -> None:
    started = []
    monkeypatch.setattr(compiled, "start", lambda: started.append(True))
    with Cluster(connect) as cluster:
        (driver,) = cluster.drivers(1)
        array = np.ones(count, dtype)
        together([driver], lambda comm: comm.all_reduce(array, codec=codec))

    assert bool(started) == starts
