"""Long round trips, lost packets, busy machines: who lives is not thrown out."""

import pytest

from ringhaul.core.coordinator.machine import Options
from ringhaul.testing.endurance import HOUR_S, UNWANTED, Endurance
from ringhaul.testing.ledger import RARE_PATHS, OracleError


@pytest.mark.seeds
@pytest.mark.parametrize("seed", range(2))
def test_nobody_is_evicted_in_an_hour_of_bad_paths_and_busy_machines(seed: int) -> None:
    report = Endurance(seed).run_for(HOUR_S)

    assert report.seen["verdict committed"] > 2000
    assert report.simulated_s >= HOUR_S


def test_a_detector_without_patience_is_found_out() -> None:
    impatient = Options(silence_busy_s=0.9, silence_idle_s=1.0, session_grace_s=0.9)

    with pytest.raises(OracleError, match="lost by silence"):
        Endurance(0, options=impatient).run_for(300.0)


def test_what_must_not_be_seen_has_the_names_under_which_it_is_counted() -> None:
    counted = {*RARE_PATHS, "evicted"}

    assert set(UNWANTED) <= counted
