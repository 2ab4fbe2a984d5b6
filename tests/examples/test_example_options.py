"""What the examples make of their options, and of Ctrl-C. No test here starts a process."""

import importlib
import io
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ringhaul.diloco import SGD, nesterov

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = {path.stem for path in EXAMPLES.glob("*.py")}
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Import an example by its name; none of them is left to the next test."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield importlib.import_module
    for name in NAMES & set(sys.modules):
        del sys.modules[name]


class Started:
    """Stands in for `subprocess.Popen`: remembers what it was asked for."""

    all: list["Started"]

    def __init__(self, command: list[str], **_: object) -> None:
        self.command = command
        self.stdout = io.StringIO('{"address": "host:1"}\n')
        self.sees_interrupts = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        self.is_terminated = False
        self.all.append(self)

    def terminate(self) -> None:
        self.is_terminated = True

    def wait(self) -> int:
        """Ctrl-C comes while somebody waits for what runs."""
        if not self.is_terminated:
            raise KeyboardInterrupt
        return -signal.SIGTERM


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    """Processes that would have been started."""
    Started.all = []
    monkeypatch.setattr(subprocess, "Popen", Started)
    return Started.all


@pytest.fixture
def call(load: Load, monkeypatch: pytest.MonkeyPatch, started: list[Started]) -> Any:  # noqa: ANN401
    """Run an example with words of a command line; its exit code."""

    def call(name: str, *words: str) -> object:
        monkeypatch.setattr("sys.argv", [f"{name}.py", *words])
        with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return getattr(ended.value, "code", None)

    return call


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("diloco_numpy", ["--loc", "2"]),
        ("diloco_numpy", ["--loca=2"]),
        ("diloco_numpy", ["--local", "0"]),
        ("diloco_numpy", ["--local=-1"]),
        pytest.param("diloco_gpt", ["--loc", "2"], marks=needs_torch),
        pytest.param("diloco_gpt", ["--local", "0"], marks=needs_torch),
        pytest.param("fsdp_groups", ["--local", "2"], marks=needs_torch),
        pytest.param("fsdp_groups", ["--local-sites", "0"], marks=needs_torch),
        ("churn_training", ["--peers", "0"]),
        ("churn_training", ["--peer", "2"]),
    ],
)
def test_abbreviations_and_less_than_one_process_are_refused(
    call: Any,  # noqa: ANN401
    started: list[Started],
    name: str,
    words: list[str],
) -> None:
    assert call(name, *words) == 2
    assert not started


@pytest.mark.parametrize("words", [["--local", "2"], ["--local=2"]])
def test_a_peer_starts_no_peers(load: Load, started: list[Started], words: list[str]) -> None:
    local = load("local")

    local.start_peer("script.py", "host:1", "a", ["--mode", "sync", *words, "--localize", "x"])

    found = started[0].command[1:]
    assert found[:5] == ["script.py", "--mode", "sync", "--localize", "x"]
    assert found[5:] == ["--coordinator", "host:1", "--name", "a"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("churn_training", []),
        pytest.param("diloco_gpt", ["--local", "2", "--metrics", "out"], marks=needs_torch),
    ],
)
def test_a_plot_without_matplotlib_is_refused_before_training(
    call: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
    started: list[Started],
    name: str,
    words: list[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed

    assert "pip install 'ringhaul[examples]'" in call(name, *words, "--plot", "loss.png")
    assert not started


@needs_torch
@pytest.mark.parametrize(
    ("words", "optimizer"),
    [
        ([], nesterov(0.7, 0.9)),
        (["--mode", "eager"], nesterov(0.4, 0.5)),
        (["--outer-lr", "0"], nesterov(0.0, 0.9)),
        (["--outer-momentum", "0"], SGD(0.7)),
        (["--outer-lr", "0.5", "--outer-momentum", "0.25"], nesterov(0.5, 0.25)),
    ],
)
def test_a_zero_is_a_setting_too(
    load: Load, monkeypatch: pytest.MonkeyPatch, words: list[str], optimizer: SGD
) -> None:
    example = load("diloco_gpt")
    monkeypatch.setattr("sys.argv", ["diloco_gpt.py", *words])

    assert example.outer_optimizer(example.parse()) == optimizer


@pytest.mark.parametrize(
    ("name", "words", "count"),
    [
        ("diloco_numpy", ["--local", "2"], 3),
        pytest.param("fsdp_groups", ["--local-sites", "2", "--shards", "2"], 5, marks=needs_torch),
    ],
)
def test_ctrl_c_ends_all_processes_and_only_one_of_them_sees_it(
    call: Any,  # noqa: ANN401
    started: list[Started],
    name: str,
    words: list[str],
    count: int,
) -> None:
    before = signal.getsignal(signal.SIGINT)

    assert call(name, *words) == 130

    assert [process.is_terminated for process in started] == [True] * count
    assert not any(process.sees_interrupts for process in started)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("name", "words", "why"),
    [
        ("diloco_numpy", ["--codec", "none"], "there is no codec 'none'"),
        ("diloco_numpy", ["--mode", "streaming", "--inner-steps", "4"], "overlap is 5"),
        pytest.param("diloco_gpt", ["--text", "/no/such"], "No such file", marks=needs_torch),
    ],
)
def test_what_cannot_be_set_up_is_said_in_a_line(
    call: Any,  # noqa: ANN401
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    words: list[str],
    why: str,
) -> None:
    calls = dict.fromkeys(["all_reduce_async", "sync_state"], print)
    alone = SimpleNamespace(rank=0, world_size=1, peer_id="a", **calls)
    monkeypatch.setattr(load("local"), "connect", lambda _args: nullcontext(alone))

    said = call(name, *words)

    assert why in said
    assert "\n" not in said


def test_a_coordinator_that_cannot_be_is_said_in_a_line(call: Any) -> None:  # noqa: ANN401
    assert "ValueError: " in call("diloco_numpy", "--coordinator", "host:port")
