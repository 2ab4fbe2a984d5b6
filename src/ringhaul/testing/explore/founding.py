"""The way to the first state of a scenario: one after another joins, without any fault."""

from ringhaul.testing.explore.actions import Action, apply, enabled
from ringhaul.testing.explore.lab import BARRIER, Lab, Request, Script
from ringhaul.testing.explore.world import World

ACTIONS_MAX = 1000


def found(lab: Lab) -> World:
    """The world in which all members of the scenario are members, and nobody else is there.

    They have called `barrier` once since the last admission, so none is a newcomer.
    """
    world = lab.empty_world()
    count = len(lab.scenario.members)
    scripts = lab.scripts
    for newcomer in range(count):
        world = _run(lab, world, Action("start", (newcomer,)))
        if newcomer:
            admit = ((Request(None),),)
            world = _call(lab, world, newcomer, admit)
    world = _call(lab, world, count, ((Request(BARRIER),),))
    lab.scripts = scripts
    processes = tuple(p._replace(steps=0, call_count=10) for p in world.processes)
    return world._replace(processes=processes, waited=0, verdicts=frozenset(), outcomes=frozenset())


def _call(lab: Lab, world: World, count: int, script: Script) -> World:
    """The first so many processes run a script."""
    lab.scripts = (script,) * count + ((),) * (len(world.processes) - count)
    world = world._replace(processes=tuple(p._replace(steps=0) for p in world.processes))
    return _run(lab, world)


def _run(lab: Lab, world: World, action: Action | None = None) -> World:
    """Do what can be done, in any order, until nothing can; nobody starts unasked."""
    if action is None:
        return _run_on(lab, world)
    lab.scripts = ((),) * len(world.processes)
    return _run_on(lab, apply(lab, world, action).done())


def _run_on(lab: Lab, world: World) -> World:
    for _ in range(ACTIONS_MAX):
        urgent = [
            action
            for action in enabled(lab, world)
            if action.is_urgent and action.name not in ("start", "pass_time")
        ]
        if not urgent:
            return world
        world = apply(lab, world, urgent[0]).done()
    raise AssertionError("the members do not come together")
