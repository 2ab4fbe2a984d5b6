"""Real processes, real TCP, real SIGKILL. Every result is compared with the exact sum."""

import contextlib
import signal
import socket
from collections.abc import Iterator

import pytest

from ringhaul.testing.processes import CoordinatorProcess, PeerProcess, first_round_of, ring

pytestmark = pytest.mark.slow


@pytest.fixture
def coordinator() -> Iterator[CoordinatorProcess]:
    with CoordinatorProcess() as process:
        yield process


@pytest.mark.parametrize("count", [64, 1_000_000, 16_000_000])
def test_survivors_of_a_sigkill_return_the_exact_sum(
    coordinator: CoordinatorProcess, count: int
) -> None:
    with ring(coordinator, 3, "--count", str(count)) as (a, b, c):
        c.kill()

        for peer in (a, b):
            event = peer.expect_any("round", "error")
            while event["event"] == "round" and len(event["contributors"]) == 3:
                event = peer.expect_any("round", "error")
            assert event["event"] == "round", event
            assert event["right"]
            assert len(event["contributors"]) == 2


def test_survivors_go_on_when_all_but_one_are_killed(coordinator: CoordinatorProcess) -> None:
    with ring(coordinator, 4, "--count", "300000") as started:
        for peer in started[1:]:
            peer.kill()

        first_round_of(started[0], 1)
        for _ in range(3):
            assert started[0].expect("round")["right"]


def test_a_joiner_enters_while_the_others_loop(coordinator: CoordinatorProcess) -> None:
    with contextlib.ExitStack() as stack:
        a = stack.enter_context(PeerProcess(coordinator.address, 0, "--admit"))
        first_round_of(a, 1)
        b = stack.enter_context(PeerProcess(coordinator.address, 1, "--admit"))

        assert first_round_of(b, 2)["right"]
        assert first_round_of(a, 2)["right"]


@pytest.mark.parametrize("out", [(), ("--out",)])
def test_kills_in_the_middle_of_large_reduces_never_hang_nor_lie(
    coordinator: CoordinatorProcess, out: tuple[str, ...]
) -> None:
    with contextlib.ExitStack() as stack:
        options = ("--count", "4000000", "--admit", *out)
        a = stack.enter_context(PeerProcess(coordinator.address, 0, *options))
        a.expect("joined")
        for victim_index in range(1, 7):
            victim = PeerProcess(coordinator.address, victim_index, *options)
            stack.enter_context(victim)
            first_round_of(a, 2)
            victim.kill()
            first_round_of(a, 1)


def test_another_shape_is_a_mismatch_on_all_that_names_both(
    coordinator: CoordinatorProcess,
) -> None:
    with contextlib.ExitStack() as stack:
        options = ("--min-world-size", "3", "--rounds", "1")
        started = [
            stack.enter_context(
                PeerProcess(coordinator.address, i, *options, "--count", str(1000 + (i == 1)))
            )
            for i in range(3)
        ]
        for peer in started:
            event = peer.expect("error")
            assert event["kind"] == "MismatchError"
            assert "1001 x float32" in event["text"]
            assert "1000 x float32" in event["text"]
            assert event["untouched"]


def test_a_stopped_peer_is_evicted_and_hears_of_it(coordinator: CoordinatorProcess) -> None:
    with contextlib.ExitStack() as stack:
        options = ("--count", "200000", "--admit", "--stop-on-error")
        a = stack.enter_context(PeerProcess(coordinator.address, 0, *options))
        a.expect("joined")
        b = stack.enter_context(PeerProcess(coordinator.address, 1, *options))
        first_round_of(a, 2)

        b.send_signal(signal.SIGSTOP)
        first_round_of(a, 1)
        b.send_signal(signal.SIGCONT)

        event = b.expect("error")
        assert event["kind"] == "EvictedError"
        assert "nothing was heard" in event["text"]


def test_raise_leaves_the_array_as_it_was(coordinator: CoordinatorProcess) -> None:
    with contextlib.ExitStack() as stack:
        options = ("--count", "4000000", "--admit", "--on-loss", "raise")
        a = stack.enter_context(PeerProcess(coordinator.address, 0, *options))
        a.expect("joined")
        b = stack.enter_context(PeerProcess(coordinator.address, 1, *options))
        first_round_of(a, 2)

        b.kill()

        # the kill may fall between two operations, then nothing is aborted
        while True:
            event = a.expect_any("round", "error")
            if event["event"] == "error":
                assert event["kind"] == "CollectiveAborted"
                assert event["untouched"]
                break
            assert event["right"]
            if len(event["contributors"]) == 1:
                break


def test_a_timeout_ends_the_operation_for_all_and_names_who_was_missing(
    coordinator: CoordinatorProcess,
) -> None:
    with contextlib.ExitStack() as stack:
        together = ("--min-world-size", "2")
        a = stack.enter_context(
            PeerProcess(coordinator.address, 0, *together, "--timeout-s", "0.3", "--rounds", "2")
        )
        b = stack.enter_context(PeerProcess(coordinator.address, 1, *together, "--rounds", "1"))

        a.expect("round")
        event = a.expect("error")
        assert event["kind"] in ("CallTimeout", "CollectiveAborted")
        assert b.wait() == 0


def test_garbage_on_every_port_harms_nobody(coordinator: CoordinatorProcess) -> None:
    with contextlib.ExitStack() as stack:
        a = stack.enter_context(PeerProcess(coordinator.address, 0, "--admit"))
        a.expect("joined")
        b = stack.enter_context(PeerProcess(coordinator.address, 1, "--admit"))
        first_round_of(a, 2)
        ports = [int(coordinator.address.rsplit(":", 1)[1])]
        ports += [port for peer in (a, b) for port in listening_ports(peer.pid)]
        assert len(ports) >= 3

        for port in ports:
            for garbage in (
                b"GET / HTTP/1.1\r\n\r\n",
                bytes(100),
                b"\xff" * 5000,
                b"\0\0\0\5abcde",
            ):
                with socket.create_connection(("127.0.0.1", port), 5) as sock:
                    sock.sendall(garbage)

        for peer in (a, b):
            for _ in range(20):
                event = peer.expect("round")
                assert event["right"]
                assert event["attempts"] == 1


def listening_ports(pid: int) -> list[int]:
    """TCP ports a process listens on, from the kernel's own tables."""
    import os

    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    ports = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/net/{table}") as lines:
            for line in list(lines)[1:]:
                words = line.split()
                if words[3] == "0A" and words[9] in inodes:
                    ports.append(int(words[1].rsplit(":", 1)[1], 16))
    return ports
