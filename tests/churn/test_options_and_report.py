"""What may be asked of a churn test, what it sends to ports, and what it says at the end."""

import json
import queue
import random
import socket

import pytest

from ringhaul.cli.churn import garbage
from ringhaul.cli.churn.garbage import Sent
from ringhaul.cli.churn.options import ChurnOptions, parse_faults
from ringhaul.cli.churn.record import Record
from ringhaul.cli.churn.report import Report
from ringhaul.errors import WireError
from ringhaul.wire.codec import decode
from ringhaul.wire.framing import FrameReader
from ringhaul.wire.session_messages import Hello, Resume


@pytest.mark.parametrize(
    "wrong",
    [
        {"peers": 0},
        {"peers": 33},
        {"seconds": 0.0},
        {"rate": 0.0},
        {"array_mib": 0.0},
        {"concurrent": 0},
        {"codec": "gzip"},
        {"faults": ("kill", "earthquake")},
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ChurnOptions(**wrong)  # type: ignore[arg-type]


def test_faults_are_separated_by_commas_and_may_be_none() -> None:
    assert parse_faults("kill, cut,kill") == ("kill", "cut")
    assert parse_faults("none") == parse_faults("") == ()


def make_report(problems: list[str]) -> Report:
    return Report(
        options=ChurnOptions(seed=77),
        seconds=12.0,
        record=Record(),
        problems=problems,
        logs="/some/folder" if problems else None,
        peers_started=5,
        coordinator_first=None,
        coordinator_last=None,
        resources_seen=True,
    )


def test_a_report_of_a_failure_names_problems_logs_and_how_to_run_it_again() -> None:
    text = make_report(["c1: wrong"]).as_text()

    assert "c1: wrong" in text
    assert "/some/folder" in text
    assert "--seed 77" in text
    assert "nothing was wrong" not in text


def test_a_report_of_a_success_says_so_and_is_json() -> None:
    report = make_report([])

    assert report.as_text().endswith("nothing was wrong")
    assert json.loads(json.dumps(report.as_json()))["ok"] is True
    assert json.loads(json.dumps(make_report(["x"]).as_json()))["ok"] is False


@pytest.mark.parametrize("kind", garbage.KINDS)
def test_garbage_is_no_message_that_opens_a_session(kind: str) -> None:
    for seed in range(20):
        data = garbage.make(kind, random.Random(seed), "c1-abc")
        try:
            frames = FrameReader().feed(data)
            messages = [decode(frame).message for frame in frames]
        except WireError:
            continue
        assert not any(isinstance(message, Hello) for message in messages)
        assert all(message.KIND for message in messages if isinstance(message, Resume))


def throw_at(sock: socket.socket) -> "queue.Queue[Sent]":
    sent: queue.Queue[Sent] = queue.Queue()
    address = f"127.0.0.1:{sock.getsockname()[1]}"
    garbage.throw("http", address, random.Random(0), "c1-abc", sent.put, closed_within_s=0.2)
    return sent


def test_a_port_that_keeps_garbage_open_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        problem = throw_at(listening).get(timeout=30).problem

    assert problem is not None
    assert "is open after" in problem


def test_a_port_that_closes_on_garbage_is_as_it_should_be() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sent = throw_at(listening)
        accepted, _ = listening.accept()
        accepted.close()

        assert sent.get(timeout=30).problem is None
