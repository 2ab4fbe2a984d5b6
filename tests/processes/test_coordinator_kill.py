"""Real processes, and SIGKILL of the coordinator in the middle of their rounds."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ringhaul.testing.processes import CoordinatorProcess, PeerProcess, first_round_of, ring

pytestmark = pytest.mark.slow


def await_rounds(peer: PeerProcess, count: int, world_size: int) -> None:
    """Wait for so many rounds of so many contributors; whatever comes has to be right."""
    for _ in range(count):
        first_round_of(peer, world_size)


@contextlib.contextmanager
def killed_and_started_again(
    coordinator: CoordinatorProcess, options: Sequence[str]
) -> Iterator[CoordinatorProcess]:
    coordinator.kill()
    coordinator.wait()
    port = int(coordinator.address.rpartition(":")[2])
    with CoordinatorProcess(port=port, options=options) as process:
        yield process


def test_rounds_go_on_when_the_coordinator_is_killed_and_started_again(tmp_path: Path) -> None:
    options = ("--journal", str(tmp_path / "journal"))
    with contextlib.ExitStack() as stack:
        coordinator = stack.enter_context(CoordinatorProcess(options=options))
        started = stack.enter_context(ring(coordinator, 3, "--count", "100000"))
        for _ in range(3):
            again = killed_and_started_again(coordinator, options)
            coordinator = stack.enter_context(again)
            for peer in started:
                await_rounds(peer, 20, 3)


def test_rounds_go_on_without_the_journal_file_and_newcomers_join(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    options = ("--journal", str(journal))
    with contextlib.ExitStack() as stack:
        coordinator = stack.enter_context(CoordinatorProcess(options=options))
        started = stack.enter_context(ring(coordinator, 2, "--count", "100000"))
        coordinator.kill()
        coordinator.wait()
        for path in tmp_path.iterdir():
            path.unlink()
        again = killed_and_started_again(coordinator, options)
        coordinator = stack.enter_context(again)
        newcomer = PeerProcess(coordinator.address, 2, "--admit", "--count", "100000")
        started.append(stack.enter_context(newcomer))
        for peer in started:
            await_rounds(peer, 20, 3)


def test_a_peer_killed_while_the_coordinator_is_away_is_found_out(tmp_path: Path) -> None:
    options = ("--journal", str(tmp_path / "journal"))
    with contextlib.ExitStack() as stack:
        coordinator = stack.enter_context(CoordinatorProcess(options=options))
        *survivors, lost = stack.enter_context(ring(coordinator, 3, "--count", "100000"))
        coordinator.kill()
        coordinator.wait()
        lost.kill()
        again = killed_and_started_again(coordinator, options)
        coordinator = stack.enter_context(again)
        for peer in survivors:
            await_rounds(peer, 20, 2)


def test_a_second_coordinator_on_one_journal_says_so_and_exits(tmp_path: Path) -> None:
    journal = str(tmp_path / "journal")
    with CoordinatorProcess(options=("--journal", journal)):
        words = ("coordinator", "--listen", "127.0.0.1:0", "--journal", journal)
        second = subprocess.run(
            [sys.executable, "-m", "ringhaul", *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert second.returncode == 3
    assert "another coordinator uses the journal" in second.stderr
    assert "Traceback" not in second.stderr
