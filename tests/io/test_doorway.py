"""Places for connections that have not proved anything: who has to go when they are taken."""

import pytest

from ringhaul.io.doorway import Doorway, neighbourhood


class Door:
    """A doorway, and whom it has sent away."""

    def __init__(self, places: int) -> None:
        self.doorway = Doorway(places)
        self.gone: list[str] = []

    def enter(self, name: str, host: str = "192.0.2.1") -> None:
        self.doorway.enter(host, lambda: self.gone.append(name))


def test_nobody_goes_while_there_are_places() -> None:
    door = Door(3)
    for name in "abc":
        door.enter(name)

    assert door.gone == []
    assert len(door.doorway) == 3


def test_the_oldest_goes_when_all_places_are_taken() -> None:
    door = Door(2)
    for name in "abcd":
        door.enter(name)

    assert door.gone == ["a", "b"]
    assert door.doorway.dropped_count == 2


def test_a_crowd_of_one_host_sends_away_its_own_oldest_and_nobody_else() -> None:
    door = Door(4)
    door.enter("honest", "198.51.100.1")
    for number in range(1000):
        door.enter(f"crowd {number}")

    assert "honest" not in door.gone
    assert len(door.gone) == 997


def test_a_newcomer_finds_a_place_among_a_crowd() -> None:
    door = Door(4)
    for number in range(4):
        door.enter(f"crowd {number}")
    door.enter("honest", "198.51.100.1")

    assert door.gone == ["crowd 0"]


def test_among_hosts_with_as_many_each_the_oldest_of_all_goes() -> None:
    door = Door(2)
    door.enter("first", "192.0.2.1")
    door.enter("second", "192.0.2.2")
    door.enter("third", "192.0.2.3")

    assert door.gone == ["first"]


def test_who_has_left_has_given_its_place_back_and_is_not_sent_away() -> None:
    gone: list[str] = []
    doorway = Doorway(1)
    leave = doorway.enter("192.0.2.1", lambda: gone.append("a"))
    leave()
    leave()
    doorway.enter("192.0.2.1", lambda: gone.append("b"))

    assert gone == []
    assert len(doorway) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8::1", "2001:db8::ffff:2"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::2"),
        ("?", "?"),
    ],
)
def test_addresses_of_one_caller_count_as_one(one: str, other: str) -> None:
    assert neighbourhood(one) == neighbourhood(other)


def test_other_networks_are_other_callers() -> None:
    assert neighbourhood("2001:db8::1") != neighbourhood("2001:db8:0:1::1")
    assert neighbourhood("192.0.2.1") != neighbourhood("192.0.2.2")
