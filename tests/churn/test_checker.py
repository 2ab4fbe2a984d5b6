"""The checker of a churn test catches each kind of lie, and no truth."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from ringhaul.cli.churn import program
from ringhaul.cli.churn.checker import CALL_BOUND_S, Checker, overdue
from ringhaul.cli.churn.facts import Admitted, Called, Ended, Synced
from ringhaul.cli.churn.program import Kind, Operation, Program

KINDS = list(Kind)
PLAN = Program(seed=3, element_count=1000, concurrent=3, codec="uint8")


def find_operation(kind: Kind, *, is_lossy: bool = False) -> Operation:
    """The first such operation of the program that carries more than a few elements."""
    for round_ in range(200):
        for block in PLAN.blocks(round_):
            for operation in block.operations:
                is_fit = operation.count > 100 or kind is Kind.BARRIER
                if operation.kind is kind and is_fit and operation.is_lossy == is_lossy:
                    return operation
    raise AssertionError(f"no {kind} in 200 rounds")


def called(
    operation: Operation, number: int, ring: Sequence[int] = (1, 2, 3), root: int | None = None
) -> Called:
    """What peer `number` would report of it."""
    sources = list(ring) if root is None else [root]
    wanted = program.expected(operation, sources, ring.index(number))
    return Called(
        peer=f"c{number}",
        at=10.0,
        began_at=9.0,
        round=operation.round,
        index=operation.index,
        kind=operation.kind.value,
        generation=7,
        contributors=[f"c{n}-abc" for n in ring],
        root=None if root is None else f"c{root}-abc",
        attempts=1,
        aborts=0,
        digest=program.digest(wanted),
        wrong=None,
        error=0.0,
    )


def synced(number: int, *, revision: int, generation: int, digest: str = "") -> Synced:
    return Synced(
        peer=f"c{number}",
        at=10.0,
        began_at=9.0,
        generation=generation,
        revision=revision,
        digest=digest or f"digest of {revision}",
        contributors=["c1-abc", "c2-abc"],
    )


def admitted(number: int, generation: int, ring: Sequence[int] = (1, 2)) -> Admitted:
    return Admitted(
        peer=f"c{number}",
        at=10.0,
        began_at=9.0,
        generation=generation,
        ring_order=[f"c{n}-abc" for n in ring],
    )


def with_contributors(fact: Called, ring: Sequence[int]) -> Called:
    return dataclasses.replace(fact, contributors=[f"c{n}-abc" for n in ring])


@pytest.fixture
def checker() -> Checker:
    return Checker(PLAN)


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_of_every_kind_of_call_passes_on_all_members(
    checker: Checker, kind: Kind
) -> None:
    operation = find_operation(kind)
    root = 2 if kind is Kind.BROADCAST else None

    for number in (1, 2, 3):
        assert checker.check(called(operation, number, root=root)) == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not Kind.BARRIER])
def test_one_wrong_element_is_caught_by_the_first_report(checker: Checker, kind: Kind) -> None:
    operation = find_operation(kind)
    root = 2 if kind is Kind.BROADCAST else None
    fact = called(operation, 1, root=root)
    result = program.expected(operation, [1, 2, 3] if root is None else [root], 0)
    assert result is not None
    result.reshape(-1)[0] += 1

    problems = checker.check(dataclasses.replace(fact, digest=program.digest(result)))

    assert problems == [
        f"c1: round {operation.round}, operation {operation.index}, {kind.value} is not the exact "
        "result of c1, c2, c3"
    ]


def test_a_result_of_other_contributors_than_named_is_caught(checker: Checker) -> None:
    operation = find_operation(Kind.ALL_REDUCE)
    lie = with_contributors(called(operation, 1, ring=(1, 2, 3)), (1, 2))

    assert "not the exact result of c1, c2" in checker.check(lie)[0]


def test_members_that_name_different_contributors_are_caught(checker: Checker) -> None:
    operation = find_operation(Kind.ALL_REDUCE)
    checker.check(called(operation, 1, ring=(1, 2, 3)))

    problems = checker.check(called(operation, 2, ring=(1, 2)))

    assert "has contributors c1, c2, at c1 it has c1, c2, c3" in problems[0]


def test_a_peer_that_got_a_result_without_having_contributed_is_caught(checker: Checker) -> None:
    fact = called(find_operation(Kind.ALL_REDUCE), 1)

    assert checker.check(dataclasses.replace(fact, peer="c9"))


def test_lossy_results_within_the_bound_pass_and_beyond_it_do_not(checker: Checker) -> None:
    operation = find_operation(Kind.ALL_REDUCE, is_lossy=True)
    bound = program.bound(operation, 3)
    fact = dataclasses.replace(called(operation, 1), digest="whatever")

    assert checker.check(dataclasses.replace(fact, error=bound)) == []
    assert checker.check(dataclasses.replace(fact, error=bound * 1.01))
    assert checker.check(dataclasses.replace(fact, error=float("nan")))


def test_lossy_results_whose_bytes_differ_are_caught(checker: Checker) -> None:
    operation = find_operation(Kind.ALL_REDUCE, is_lossy=True)
    checker.check(dataclasses.replace(called(operation, 1), digest="one"))

    problems = checker.check(dataclasses.replace(called(operation, 2), digest="other"))

    assert "has other bytes than at c1" in problems[0]


def test_a_call_that_returned_in_another_generation_is_caught(checker: Checker) -> None:
    operation = find_operation(Kind.BARRIER)
    checker.check(called(operation, 1))

    problems = checker.check(dataclasses.replace(called(operation, 2), generation=8))

    assert "returned in generation 8, at c1 in 7" in problems[0]


def test_what_a_peer_found_wrong_by_itself_is_a_problem(checker: Checker) -> None:
    fact = dataclasses.replace(called(find_operation(Kind.ALL_REDUCE), 1), wrong="3 elements")

    assert "3 elements" in checker.check(fact)[0]


def test_an_operation_outside_the_program_is_caught(checker: Checker) -> None:
    fact = dataclasses.replace(called(find_operation(Kind.BARRIER), 1), index=10_000)

    assert "no operation of the program" in checker.check(fact)[0]


def test_states_that_differ_at_one_revision_are_caught(checker: Checker) -> None:
    assert checker.check(synced(1, revision=4, generation=2)) == []
    assert checker.check(synced(2, revision=4, generation=2)) == []

    problems = checker.check(synced(3, revision=4, generation=2, digest="another"))

    assert problems == ["c3: revision 4 of the state differs from that of c1"]


def test_a_revision_that_goes_back_at_one_peer_is_caught(checker: Checker) -> None:
    checker.check(synced(1, revision=4, generation=2))

    assert (
        "revision 3 of the state follows 4" in checker.check(synced(1, revision=3, generation=2))[0]
    )


def test_a_revision_that_goes_back_from_one_generation_to_a_later_is_caught(
    checker: Checker,
) -> None:
    checker.check(synced(1, revision=4, generation=2))

    problems = checker.check(synced(2, revision=3, generation=3))

    assert "in generation 2 it was 4" in problems[0]


def test_a_slow_peers_report_of_an_older_generation_is_no_step_back(checker: Checker) -> None:
    checker.check(synced(1, revision=4, generation=3))

    assert checker.check(synced(2, revision=3, generation=2)) == []


def test_rings_that_differ_in_one_generation_are_caught(checker: Checker) -> None:
    assert checker.check(admitted(1, 5, (1, 2))) == []
    assert checker.check(admitted(2, 5, (1, 2))) == []

    assert "at c1 it is c1, c2" in checker.check(admitted(3, 5, (1, 2, 3)))[0]


def test_a_generation_that_goes_back_is_caught(checker: Checker) -> None:
    checker.check(admitted(1, 5))

    assert "generation 4 follows 5" in checker.check(admitted(1, 4))[0]


def test_a_call_is_overdue_once_it_lasts_longer_than_the_bound_and_its_excuses() -> None:
    end = 100.0 + CALL_BOUND_S

    assert overdue("c1", 100.0, end, 0.0) is None
    assert overdue("c1", 100.0, end + 0.1, 0.0) is not None
    assert overdue("c1", 100.0, end + 3.0, 3.0) is None


def test_an_end_is_not_the_checkers_to_judge(checker: Checker) -> None:
    assert checker.check(Ended(peer="c1", at=1.0, began_at=0.0, why="left", text="")) == []


@pytest.mark.parametrize("kind", [Kind.ALL_REDUCE, Kind.ASYNC, Kind.REDUCE_SCATTER])
def test_contributions_are_summed_exactly_in_whatever_order(kind: Kind) -> None:
    operation = dataclasses.replace(find_operation(kind), op="sum", dtype="float32")
    numbers = list(range(1, 33))
    forth = np.zeros(operation.count, np.float32)
    back = forth.copy()
    for number in numbers:
        forth += program.contribution(operation, number)
    for number in reversed(numbers):
        back += program.contribution(operation, number)

    assert np.array_equal(forth, back)
    assert np.array_equal(forth, program.reduced(operation, numbers))


def test_all_members_compute_the_same_program_and_rounds_differ() -> None:
    assert PLAN.blocks(5) == PLAN.blocks(5)
    assert len({str(PLAN.blocks(round_)) for round_ in range(20)}) == 20


def test_every_kind_of_call_comes_in_few_rounds() -> None:
    kinds = {o.kind for r in range(30) for block in PLAN.blocks(r) for o in block.operations}

    assert kinds == set(Kind)
