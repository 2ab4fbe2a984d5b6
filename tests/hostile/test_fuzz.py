"""A short fuzz of every parser; `python -m ringhaul.testing fuzz` is the long one."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringhaul.testing.fuzz import campaign
from ringhaul.testing.fuzz.campaign import TARGETS, Tally, feed, run_target
from ringhaul.testing.fuzz.targets import Target

INPUTS = 300
#: Machines are made anew for each input.
SLOW_INPUTS = 100


@pytest.mark.parametrize("name", TARGETS)
def test_no_mutant_of_valid_input_brings_a_parser_down(name: str) -> None:
    inputs = SLOW_INPUTS if "machine" in name else INPUTS
    _, tally = run_target(name, 0, inputs)

    assert [str(failure) for failure in tally.failures] == []
    assert 0 < tally.taken < tally.inputs  # both ends of the parser were reached


@pytest.mark.parametrize("name", [name for name in TARGETS if "machine" not in name])
@given(data=st.binary(max_size=300))
def test_no_bytes_at_all_bring_a_parser_down(name: str, data: bytes) -> None:
    target = targets.setdefault(name, TARGETS[name]())
    tally = Tally()
    feed(target, data, tally)

    assert [str(failure) for failure in tally.failures] == []


targets: dict[str, Target] = {}


class Fragile:
    """Breaks at a byte that no original has."""

    name = "fragile"

    def originals(self, dice: object) -> list[bytes]:
        return [bytes(16)]

    def mutate(self, data: bytes, dice: random.Random) -> bytes:
        return dice.randbytes(4)

    def feed(self, data: bytes) -> bool:
        if b"\x07" in data:
            raise IndexError("seven")
        return True


def test_a_campaign_tells_what_breaks_a_parser_and_the_same_seed_finds_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TARGETS, "fragile", Fragile)

    assert campaign.main(["--inputs", "1000", "--target", "fragile"]) == 1
    first = [line for line in capsys.readouterr().out.splitlines() if "replay" in line]
    assert campaign.main(["--inputs", "1000", "--target", "fragile"]) == 1
    again = [line for line in capsys.readouterr().out.splitlines() if "replay" in line]

    assert first == again
    data = first[0].split()[-1]
    with pytest.raises(IndexError):
        campaign.main(["--replay", "fragile", data])


def test_a_campaign_that_finds_nothing_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert campaign.main(["--inputs", "200", "--target", "header"]) == 0
    assert "200 inputs" in capsys.readouterr().out
