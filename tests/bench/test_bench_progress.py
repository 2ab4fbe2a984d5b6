"""What `ringhaul bench` says before it measures, with a coordinator that is played."""

import threading

import pytest

from ringhaul.cli.bench import measure, reaching
from ringhaul.cli.bench.command import run_bench
from ringhaul.cli.bench.options import BenchOptions
from ringhaul.errors import ConnectError

#: Far more than it takes.
PATIENCE_S = 60.0


class Coordinator:
    """Answers from the second question on, if at all."""

    def __init__(self, *, answers: bool) -> None:
        self.answers = answers
        self.asked_count = 0
        self.is_asked_twice = threading.Event()

    async def fetch_status(self, host: str, port: int, timeout_s: float) -> None:
        self.asked_count += 1
        if self.asked_count >= 2:
            self.is_asked_twice.set()
        if not self.answers or self.asked_count < 2:
            raise ConnectError("nobody is there")


def told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, answers: bool
) -> list[str]:
    """Lines of a run that ends without peers."""
    coordinator = Coordinator(answers=answers)

    def connect(*_: object, **__: object) -> None:
        assert coordinator.is_asked_twice.wait(PATIENCE_S)
        if answers:  # its asking ends by itself once it has been told
            for thread in threading.enumerate():
                if thread.name == reaching.THREAD_NAME:
                    thread.join(PATIENCE_S)
        raise ConnectError("not reached")

    monkeypatch.setattr(reaching, "PAUSE_S", 0.0)
    monkeypatch.setattr(reaching, "fetch_status", coordinator.fetch_status)
    monkeypatch.setattr(measure, "connect", connect)
    assert run_bench(BenchOptions(address="host:1", peers=3)) == 1
    return capsys.readouterr().err.splitlines()


def test_until_the_coordinator_is_reached_nobody_is_said_to_wait_for_peers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(monkeypatch, capsys, answers=False)

    assert found == ["connecting to host:1", "bench failed: ConnectError: not reached"]


def test_once_it_is_reached_the_wait_is_for_peers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(monkeypatch, capsys, answers=True)

    assert found[:2] == ["connecting to host:1", "waiting until 3 peers are there"]
