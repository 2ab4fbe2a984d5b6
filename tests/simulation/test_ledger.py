"""The oracles themselves: what they find, and whom they ask."""

import pytest

from ringhaul.ids import Generation, OpKey
from ringhaul.testing.ledger import Ledger, OracleError

KEY = OpKey(None, 3)
ERA = Generation(1)


def test_two_members_with_different_outcomes_are_found() -> None:
    ledger = Ledger()
    ledger.record_outcome("p1", 0, ERA, KEY, ("committed", 2))

    with pytest.raises(OracleError, match="p1 got"):
        ledger.record_outcome("p2", 0, ERA, KEY, ("committed", 3))


def test_who_was_left_behind_by_a_coordinator_without_journal_is_no_witness_any_more() -> None:
    ledger = Ledger()
    ledger.record_outcome("p1", 0, ERA, OpKey(None, 2), ("committed", 1))
    ledger.forget_all_but({"p2"})

    ledger.record_outcome("p1", 0, ERA, KEY, ("committed", 2))  # it was under way to it
    ledger.record_outcome("p3", 0, ERA, KEY, ("committed", 3))

    with pytest.raises(OracleError, match="p3 got"):
        ledger.record_outcome("p4", 0, ERA, KEY, ("committed", 2))
