"""What the orchestrator makes of facts that no checker of results sees: ends, silence, stops."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from ringhaul.cli.churn.checker import CALL_BOUND_S
from ringhaul.cli.churn.facts import LINES, Admitted, Ended, Fact, Joined, Synced
from ringhaul.cli.churn.faults import STOP_NOTICED_S
from ringhaul.cli.churn.fleet import Phase, Worker
from ringhaul.cli.churn.options import ChurnOptions
from ringhaul.cli.churn.orchestrator import ChurnTest
from ringhaul.cli.churn.view import PlainView
from ringhaul.cli.processes import Child, Children, Line

#: A process that does nothing until it is told to end.
IDLE = ["-c", "import sys; sys.stdin.read()"]


class Bench:
    """A test that was not started, and peers whose facts are written by hand."""

    def __init__(self, children: Children, logs: Path) -> None:
        self.children = children
        options = ChurnOptions(peers=2, faults=("kill", "stop"))
        view = PlainView(Console(), is_silent=True)
        self.test = ChurnTest(options, children, view, logs)
        self.test._fleet.coordinator = self.idle("coordinator")
        self.now = time.monotonic()

    def idle(self, name: str) -> Child:
        return self.children.start(name, IDLE)

    def member(self, name: str) -> Worker:
        worker = Worker(name=name, child=self.idle(name), phase=Phase.JOINING)
        worker.sent_at = worker.heard_at = self.now
        self.test._fleet.workers[name] = worker
        self.tell(Joined(peer=name, at=self.now, peer_id=f"{name}-abc"))
        assert worker.phase is Phase.MEMBER
        return worker

    def tell(self, *facts: Fact) -> None:
        for fact in facts:
            self.children.lines.put(Line(fact.peer, LINES.encode(fact) + "\n"))
        self.test._take_lines()

    def sync(self, name: str) -> None:
        fact = Synced(
            peer=name,
            at=self.now,
            began_at=self.now,
            generation=1,
            revision=0,
            digest="d",
            contributors=[f"{name}-abc"],
        )
        self.tell(fact)

    def end(self, name: str, why: str, text: str = "") -> None:
        self.tell(Ended(peer=name, at=self.now, began_at=self.now, why=why, text=text))

    def admit(self, name: str, *ring: str) -> None:
        fact = Admitted(
            peer=name,
            at=self.now + 1.0,
            began_at=self.now,
            generation=2,
            ring_order=[f"{member}-abc" for member in ring],
        )
        self.tell(fact)

    @property
    def problems(self) -> list[str]:
        return [problem.partition(": ")[2] for problem in self.test.problems]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Children() as children:
        yield Bench(children, tmp_path)


def test_an_eviction_without_a_reason_is_a_problem(bench: Bench) -> None:
    bench.member("c1")
    bench.end("c1", "EvictedError", "nothing was heard of it for 5 s")

    assert bench.problems == ["c1 was evicted for no reason: nothing was heard of it for 5 s"]


def test_an_eviction_after_a_brief_stop_is_a_problem_and_after_a_long_one_is_not(
    bench: Bench,
) -> None:
    for name, stopped_s in (("c1", 2.0), ("c2", 6.0)):
        bench.member(name).stops.append((bench.now - stopped_s, bench.now))
        bench.end(name, "EvictedError")

    assert len(bench.problems) == 1
    assert bench.problems[0].startswith("c1 was evicted")


def test_a_peer_that_leaves_unasked_is_a_problem(bench: Bench) -> None:
    bench.member("c1")
    bench.end("c1", "left")

    assert bench.problems == ["c1 left without having been told to"]


def test_a_peer_that_leaves_when_it_is_told_is_none(bench: Bench) -> None:
    worker = bench.member("c1")
    bench.test._fleet.leave(worker, bench.now)
    bench.end("c1", "left")

    assert bench.problems == []
    assert worker.phase is Phase.ENDED


def test_any_other_error_is_a_problem_with_its_text(bench: Bench) -> None:
    bench.member("c1")
    bench.end("c1", "CoordinatorLost", "away for 300 s")

    assert bench.problems == ["c1 ended with CoordinatorLost: away for 300 s"]


def test_a_process_that_ends_without_a_word_is_a_problem(bench: Bench) -> None:
    worker = bench.member("c1")
    worker.child.finish()
    bench.test._look_after(bench.now)

    assert bench.problems[0].startswith("c1 ended with exit code 0")


def test_a_coordinator_that_ends_by_itself_is_a_problem(bench: Bench) -> None:
    bench.test._fleet.coordinator.finish()
    bench.test._look_after(bench.now)

    assert bench.problems[0].startswith("the coordinator ended with exit code 0")


def test_a_call_that_does_not_end_is_found_while_it_lasts(bench: Bench) -> None:
    bench.member("c1")
    bench.test._watch(bench.now + CALL_BOUND_S - 1.0)
    assert bench.problems == []

    bench.test._watch(bench.now + CALL_BOUND_S + 1.0)

    assert bench.problems[0].startswith("c1: a call has lasted")


def test_time_in_which_the_coordinator_was_away_is_excused(bench: Bench) -> None:
    bench.member("c1")
    bench.test._fleet.coordinator_gaps.append((bench.now + 1.0, bench.now + 11.0))
    bench.test._watch(bench.now + CALL_BOUND_S + 9.0)

    assert bench.problems == []


def test_a_call_that_ended_too_late_is_found_by_its_report(bench: Bench) -> None:
    bench.member("c1")
    bench.now += CALL_BOUND_S
    fact = Admitted(
        peer="c1",
        at=bench.now + 1.0,
        began_at=bench.now - CALL_BOUND_S,
        generation=1,
        ring_order=["c1-abc"],
    )
    bench.tell(fact)

    assert bench.problems[0].startswith("c1: a call has lasted")


def test_a_stopped_peer_that_the_others_do_not_get_over_is_a_problem(bench: Bench) -> None:
    bench.member("c1")
    stopped = bench.member("c2")
    bench.test._fleet.stop(stopped, bench.now, is_long=True)
    bench.admit("c1", "c1", "c2")
    bench.test._watch(bench.now + STOP_NOTICED_S + 1.0)

    assert bench.problems == ["c2 is stopped, and the others still wait for it"]


def test_a_ring_without_the_stopped_peer_shows_that_they_got_over_it(bench: Bench) -> None:
    bench.member("c1")
    stopped = bench.member("c2")
    bench.test._fleet.stop(stopped, bench.now, is_long=True)
    bench.admit("c1", "c1")
    bench.test._watch(bench.now + STOP_NOTICED_S + 1.0)

    assert stopped.is_done_without
    assert bench.problems == []


def test_lines_that_are_no_facts_are_a_problem(bench: Bench) -> None:
    bench.member("c1")
    bench.children.lines.put(Line("c1", "Segmentation fault\n"))
    bench.test._take_lines()

    assert bench.problems == ["c1 printed 'Segmentation fault\\n'"]


def test_what_a_failed_test_leaves(bench: Bench, tmp_path: Path) -> None:
    bench.member("c1")
    bench.end("c1", "StateError", "no holder")
    report = bench.test.report()
    bench.test.write_facts()

    assert report.logs == str(tmp_path)
    assert '"event": "ended"' in (tmp_path / "facts.jsonl").read_text()
    assert "no holder" in (tmp_path / "faults.txt").read_text()


def test_one_that_holds_the_state_is_never_taken_away(bench: Bench) -> None:
    names = [bench.member(f"c{number}").name for number in range(6)]
    injector = bench.test._injector
    injector._members(bench.now)
    bench.sync(names[4])

    victims = {worker.name for _ in range(100) for worker in injector._members(bench.now)}

    assert victims == {*names} - {names[4]}
