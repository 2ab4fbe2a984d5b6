"""What a run of churn excuses: time in which somebody could not act."""

from ringhaul.cli.churn.fleet import _covered_s


def test_time_in_no_gap_is_not_covered() -> None:
    assert _covered_s([], 3.0, 9.0) == 0.0
    assert _covered_s([(0.0, 3.0), (9.0, None)], 3.0, 9.0) == 0.0


def test_each_instant_counts_once_however_many_gaps_it_lies_in() -> None:
    gaps = [(5.0, 8.0), (4.0, 6.0), (7.0, 7.5)]

    assert _covered_s(gaps, 0.0, 20.0) == 4.0


def test_gaps_are_cut_at_both_ends_and_an_open_one_lasts() -> None:
    assert _covered_s([(0.0, 4.0)], 3.0, 9.0) == 1.0
    assert _covered_s([(8.0, 99.0)], 3.0, 9.0) == 1.0
    assert _covered_s([(7.0, None)], 3.0, 9.0) == 2.0
