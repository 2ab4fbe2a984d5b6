"""Both machines under simulated faults: nothing may go wrong, and then all must converge."""

from collections import Counter

import pytest

from ringhaul.testing.ledger import RARE_PATHS
from ringhaul.testing.simulator import run_seed

SEEDS = 1000
BLOCK = 50
#: Each failed once; see the step-level tests for what was wrong.
ONCE_FAILED = (
    23,
    100,
    162,
    179,
    189,
    234,
    244,
    261,
    269,
    341,
    431,
    694,
    791,
    1676,
    2746,
    6146,
    8671,
    9319,
    9863,
    12465,
    12478,
    15055,
    55945,
    57045,
    100076,
    100100,
    151492,
    251032,
    251276,
    252033,
    353908,
    418646,
    419291,
    507445,
    550163,
    550219,
)


def run_named(seed: int) -> dict[str, int]:
    try:
        return run_seed(seed).seen
    except Exception as error:
        command = f"python -m ringhaul.testing --runs 1 --seed {seed} --trace"
        raise AssertionError(f"seed {seed} failed; replay: {command}\n{error}") from error


@pytest.fixture(scope="module")
def seen() -> Counter[str]:
    return Counter()


@pytest.mark.seeds
@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_members_agree_under_faults_and_converge_when_they_stop(
    first: int, seen: Counter[str]
) -> None:
    for seed in range(first, first + BLOCK):
        seen.update(run_named(seed))


@pytest.mark.seeds
def test_every_rare_path_was_reached(seen: Counter[str]) -> None:
    if not seen:
        pytest.skip("the seeds were not run in this session")

    assert [path for path in RARE_PATHS if not seen[path]] == []


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_seed_that_failed_once_is_good(seed: int) -> None:
    run_named(seed)


def test_a_seed_replays_exactly() -> None:
    first: list[str] = []
    second: list[str] = []

    run_seed(7, tell=first.append)
    run_seed(7, tell=second.append)

    assert first == second
