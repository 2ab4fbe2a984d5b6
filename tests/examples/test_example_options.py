"""What the examples make of their options. No test here starts a process."""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest

from ringhaul.diloco import SGD, nesterov

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
Load = Callable[[str], ModuleType]


class Started:
    """Stands in for `subprocess.Popen`: remembers the command."""

    commands: list[list[str]]

    def __init__(self, command: list[str], **_: object) -> None:
        self.commands.append(command)

    def wait(self) -> int:
        return 0


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands of the processes that would have been started."""
    Started.commands = []
    monkeypatch.setattr(subprocess, "Popen", Started)
    return Started.commands


@pytest.fixture
def call(load: Load, monkeypatch: pytest.MonkeyPatch, started: list[list[str]]) -> Any:  # noqa: ANN401
    """Call the `main` of an example with words of a command line; its exit code."""

    def call(name: str, *words: str) -> object:
        monkeypatch.setattr("sys.argv", [f"{name}.py", *words])
        with pytest.raises(SystemExit) as ended:
            load(name).main()
        return ended.value.code

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
    started: list[list[str]],
    name: str,
    words: list[str],
) -> None:
    assert call(name, *words) == 2
    assert not started


@pytest.mark.parametrize("words", [["--local", "2"], ["--local=2"]])
def test_a_peer_starts_no_peers(load: Load, started: list[list[str]], words: list[str]) -> None:
    local = load("local")

    local.start_peer("script.py", "host:1", "a", ["--mode", "sync", *words, "--localize", "x"])

    found = started[0][1:]
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
    started: list[list[str]],
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
