"""Real kernels' TCP over the emulated wire. Times are compared with what cannot be beaten only."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ringhaul.testing.processes import CoordinatorProcess, PeerProcess
from ringhaul.testing.wan import Wan, why_unavailable

REASON = why_unavailable()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]
COORDINATOR = 2


def wait_until(is_true: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def connection(wan: Wan, a: int, b: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from a to b, both ends."""
    with wan.inside(b):
        listener = socket.create_server((wan.address(b), 0))
    with listener:
        with wan.inside(a):
            client = socket.create_connection(listener.getsockname())
        with client, listener.accept()[0] as server:
            yield client, server


def receive(sock: socket.socket, count: int) -> None:
    while count:
        count -= len(sock.recv(min(count, 1 << 20)))


def send_through(client: socket.socket, server: socket.socket, count: int) -> float:
    """Seconds that `count` bytes took."""
    started = time.monotonic()
    sender = threading.Thread(target=client.sendall, args=(bytes(count),))
    sender.start()
    receive(server, count)
    sender.join()
    return time.monotonic() - started


def test_no_connection_is_made_faster_than_the_delays_allow() -> None:
    with Wan(2, delay_ms=40) as wan:
        started = time.monotonic()
        with connection(wan, 0, 1):
            elapsed_s = time.monotonic() - started

    assert elapsed_s >= 0.08


def test_no_bytes_come_faster_than_the_rate_and_none_is_changed() -> None:
    with Wan(2, up_mbit=80) as wan, connection(wan, 0, 1) as (client, server):
        elapsed_s = send_through(client, server, 4_000_000)

    assert elapsed_s >= 0.4


def test_losses_happen_and_tcp_repairs_them() -> None:
    with Wan(2, delay_ms=1, loss=0.02) as wan, connection(wan, 0, 1) as (client, server):
        send_through(client, server, 8_000_000)
        stats = wan.stats()

    assert stats.pieces["lost"] > 0
    assert stats.delivered_bytes > 8_000_000


def test_flows_are_told_apart_throttled_and_reset() -> None:
    with Wan(2, delay_ms=1) as wan, connection(wan, 0, 1) as (client, server):
        send_through(client, server, 1_000_000)
        flow = wan.flows(0, 1)[0]
        wan.throttle(flow, 80)
        elapsed_s = send_through(client, server, 2_000_000)
        wan.reset(flow)
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            client.recv(1)

    assert flow.bytes_count >= 1_000_000
    assert elapsed_s >= 0.18


def test_a_cut_holds_what_is_sent_and_a_heal_lets_it_through() -> None:
    with Wan(2) as wan, connection(wan, 0, 1) as (client, server):
        wan.cut(0, 1)
        client.sendall(b"x")
        wait_until(lambda: wan.stats().pieces.get("cut", 0) > 0)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv(1)
        server.settimeout(30)
        wan.heal(0, 1)

        assert server.recv(1) == b"x"


def test_an_all_reduce_over_the_wire_is_exact_also_through_a_cut() -> None:
    with contextlib.ExitStack() as stack:
        wan = stack.enter_context(Wan(3, up_mbit=200, down_mbit=200, delay_ms=10))
        with wan.inside(COORDINATOR):
            coordinator = stack.enter_context(CoordinatorProcess(wan.address(COORDINATOR)))
        peers = []
        for host in range(2):
            with wan.inside(host):
                words = ("--min-world-size", "2", "--count", "500000")
                peer = PeerProcess(coordinator.address, host, *words)
            peers.append(stack.enter_context(peer))
        for peer in peers:
            assert peer.expect("round")["right"]

        for direction in ((0, 1), (1, 0)):
            before = wan.stats().pieces.get("cut", 0)
            wan.cut(*direction)
            wait_until(lambda before=before: wan.stats().pieces.get("cut", 0) > before)  # type: ignore[misc]
            wan.heal(*direction)
            for peer in peers:
                for _ in range(4):
                    event = peer.expect_any("round", "error")
                    assert event["event"] == "round", event
                    assert event["right"]
                    assert len(event["contributors"]) == 2
