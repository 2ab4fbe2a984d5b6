"""Structured logs: one JSON object a line, from the real coordinator."""

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from ringhaul import connect
from ringhaul.cli.logs import JsonFormatter
from ringhaul.core.steps import Log
from ringhaul.io.logs import log_effect


def record_of(message: str, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("ringhaul.io", logging.INFO, "", 0, "%s", (message,), None)
    for name, value in extra.items():
        setattr(record, name, value)
    return record


def test_a_record_is_one_object_on_one_line() -> None:
    text = JsonFormatter().format(record_of("two\nlines", facts={"peer": "a-1", "generation": 3}))

    assert "\n" not in text
    fields = json.loads(text)
    assert fields["message"] == "two\nlines"
    assert fields["level"] == "INFO"
    assert fields["logger"] == "ringhaul.io"
    assert (fields["peer"], fields["generation"]) == ("a-1", 3)
    assert fields["time"].endswith("+00:00")


def test_facts_hide_no_field_that_all_records_have() -> None:
    fields = json.loads(JsonFormatter().format(record_of("text", facts={"level": "none"})))

    assert fields["level"] == "INFO"


def test_an_exception_is_part_of_the_object() -> None:
    try:
        raise ValueError("a bug")
    except ValueError:
        record = logging.LogRecord("ringhaul", 40, "", 0, "failed", (), sys.exc_info())

    assert "ValueError: a bug" in json.loads(JsonFormatter().format(record))["exception"]


@pytest.mark.parametrize(
    ("effect", "level"),
    [
        (Log("x"), logging.INFO),
        (Log("x", important=False), logging.DEBUG),
        (Log("x", urgent=True), logging.WARNING),
    ],
)
def test_what_is_urgent_is_a_warning(
    effect: Log, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "ringhaul"):
        log_effect(logging.getLogger("ringhaul.test"), effect)

    assert [record.levelno for record in caplog.records] == [level]


@pytest.mark.slow
def test_the_coordinator_logs_what_happens_as_json() -> None:
    command = [sys.executable, "-m", "ringhaul", "coordinator", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--json", "--log-json", "--new"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as coordinator:
        assert coordinator.stdout is not None
        address = json.loads(coordinator.stdout.readline())["address"]
        with connect(address, name="ada") as comm:
            peer_id = comm.peer_id
        coordinator.terminate()
        _, errors = coordinator.communicate(timeout=30)

    records: list[dict[str, Any]] = [json.loads(line) for line in errors.splitlines()]
    events = {record.get("event"): record for record in records}
    assert events["pending"]["peer"] == peer_id
    assert events["opened"]["world_size"] == 1
    assert events["out"]["reason"] == "it left"
    assert all(record["logger"].startswith("ringhaul") for record in records)
