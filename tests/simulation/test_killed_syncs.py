"""One process is killed at every event of a `sync_state`: no third outcome, and life goes on.

The simulator's oracles say what may come of it: every survivor ends with the elected content bit
by bit, or with a named error and the content that it had.
"""

from collections import Counter

import pytest

from ringhaul.testing.simulator import World

SEED = 10
VICTIMS = 3
#: Acts of the simulation, from the first election on.
WINDOW = 30


def quiet_world() -> World:
    """A world of its seed, without any fault of its own."""
    world = World(SEED)
    world._faults = {}
    world.spoils_results = world.has_mismatch = False
    return world


def first_election() -> int:
    """The act in which a content is elected that somebody has to fetch."""
    world = quiet_world()
    found: list[int] = []
    follow = world.states.follow

    def note(process, effect):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        if effect.plan.holders:
            found.append(world.acts)
        follow(process, effect)

    world.states.follow = note  # type: ignore[method-assign]
    world.run()
    return found[0]


@pytest.mark.seeds
def test_a_process_killed_at_any_event_of_a_sync_spoils_nobodys_state() -> None:
    begins = first_election() - 3
    seen: Counter[str] = Counter()
    for at in range(begins, begins + WINDOW):
        for place in range(VICTIMS):
            world = quiet_world()
            world._faulty_acts = at + 1
            world._faults = {at: lambda world=world, place=place: kill(world, place)}  # type: ignore[misc]
            try:
                seen.update(world.run().seen)
            except Exception as error:
                raise AssertionError(f"process {place} killed at act {at}: {error}") from error

    for path in ("state source lost", "state fetched", "state lost with its last holder"):
        assert seen[path], path


def kill(world: World, place: int) -> None:
    """SIGKILL of one of the first processes."""
    world.processes[place].die("killed")
