"""Visits every state of a small world once, breadth first, so that traces are short."""

import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ringhaul.errors import InvariantError
from ringhaul.testing.explore.actions import Action, apply, enabled
from ringhaul.testing.explore.cells import Names
from ringhaul.testing.explore.founding import found
from ringhaul.testing.explore.lab import Lab, Scenario
from ringhaul.testing.explore.world import Violation, World

#: So long nothing but time passes, and a call is open: it hangs.
HANG_S = 60
STATES_MAX = 20_000_000


@dataclass(slots=True)
class Findings:
    """What an exploration has visited."""

    scenario: str
    states: int = 0
    transitions: int = 0
    ends: int = 0
    depth: int = 0
    peer_states: int = 0
    coordinator_states: int = 0
    #: Of CPU.
    took_s: float = 0.0
    #: What went wrong, with the way there, and the actions of it.
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.scenario}: {self.states} states, {self.transitions} transitions, "
            f"{self.ends} ends, depth {self.depth}; {self.coordinator_states} states of the "
            f"coordinator's machine, {self.peer_states} of the peers'; {self.took_s:.1f} s"
        )


class _Visited:
    """All states, numbered as they were found; how each was reached first."""

    def __init__(self) -> None:
        self._parts = [Names[object]() for _ in World._fields]
        self._numbers: dict[bytes, int] = {}
        self._keys: list[bytes] = []
        self._parents = array("q")
        self._actions: Names[Action] = Names()
        self._action_of = array("q")
        #: The state that was looked at last: most parts of the next are the same objects.
        self._base: tuple[tuple[object, ...], tuple[int, ...]] = (
            (object(),) * len(World._fields),
            (0,) * len(World._fields),
        )

    def add(self, world: World, parent: int, action: Action | None) -> bool:
        """Note a state; tell whether it is new."""
        numbers = [
            number if part is same else names.number(part)
            for names, part, same, number in zip(self._parts, world, *self._base, strict=True)
        ]
        key = array("I", numbers).tobytes()
        if key in self._numbers:
            return False
        self._numbers[key] = len(self._keys)
        self._keys.append(key)
        self._parents.append(parent)
        self._action_of.append(-1 if action is None else self._actions.number(action))
        return True

    def world(self, number: int) -> World:
        """The state with this number."""
        numbers = array("I")
        numbers.frombytes(self._keys[number])
        parts = tuple(names.values[n] for names, n in zip(self._parts, numbers, strict=True))
        self._base = (parts, tuple(numbers))
        return World(*parts)  # type: ignore[arg-type]

    def way_to(self, number: int) -> list[Action]:
        """What happened until this state."""
        way = []
        while self._parents[number] >= 0:
            way.append(self._actions.values[self._action_of[number]])
            number = self._parents[number]
        return way[::-1]

    def __len__(self) -> int:
        """How many there are."""
        return len(self._keys)


def explore(
    scenario: Scenario,
    *,
    states_max: int = STATES_MAX,
    violations_max: int = 1,
    progress: Callable[[Findings], None] = lambda findings: None,
) -> Findings:
    """Visit all states.

    Args:
        scenario: programs and faults.
        states_max: more than this is a mistake in the scenario, or in the machines.
        violations_max: stop after so many.
        progress: is told now and then.
    """
    began_at = time.process_time()
    lab = Lab(scenario)
    findings = Findings(scenario.name)
    visited = _Visited()
    visited.add(found(lab), -1, None)
    number, level_ends = 0, 1
    while number < len(visited) and len(findings.violations) < violations_max:
        if number == level_ends:
            level_ends = len(visited)
            findings.depth += 1
        world = visited.world(number)
        try:
            _visit(lab, visited, number, world, findings)
        except (Violation, InvariantError, AssertionError) as error:
            findings.violations.append(_tell_way(scenario, visited.way_to(number), error))
        if len(visited) > states_max:
            findings.violations.append(f"more than {states_max} states")
            break
        number += 1
        if number % 10_000 == 0:
            findings.states, findings.took_s = len(visited), time.process_time() - began_at
            progress(findings)
    findings.states = len(visited)
    findings.coordinator_states = len(lab.coordinators)
    findings.peer_states = len(lab.peers)
    findings.took_s = time.process_time() - began_at
    return findings


class _InAction(AssertionError):
    """What went wrong in an action."""

    def __init__(self, action: Action, error: Exception) -> None:
        super().__init__(str(error))
        self.action = action


def _visit(lab: Lab, visited: _Visited, number: int, world: World, findings: Findings) -> None:
    if world.waited > HANG_S:
        raise Violation(f"for {HANG_S} s nothing happens, but this is not over")
    actions = enabled(lab, world)
    if not any(action.is_urgent for action in actions):
        findings.ends += 1
    for action, following in _successors(lab, world, actions):
        findings.transitions += 1
        visited.add(following, number, action)


def _successors(lab: Lab, world: World, actions: list[Action]) -> Iterator[tuple[Action, World]]:
    may_die = world.fault is None and "kill" in lab.scenario.faults
    for action in actions:
        try:
            draft = apply(lab, world, action)
            yield action, draft.done()
            for count in range(1, draft.visible if may_die and action.is_urgent else 0):
                action = action._replace(dies_after=count)
                yield action, apply(lab, world, action).done()
        except Exception as error:
            raise _InAction(action, error) from error


def _tell_way(scenario: Scenario, way: list[Action], error: Exception) -> str:
    """Replay, and tell it."""
    lab = Lab(scenario)
    world = found(lab)
    lines: list[str] = []

    def tell(who: str, what: object) -> None:
        lines.append(f"    {who:12} {what}")

    if isinstance(error, _InAction):
        way = [*way, error.action]
    for number, action in enumerate(way):
        lines.append(f"{number:4} {action}")
        try:
            world = apply(lab, world, action, tell).done()
        except Exception as again:
            lines.append(f"{type(again).__name__}: {again}")
            return "\n".join(lines)
    lines.append(f"{type(error).__name__}: {error}")
    lines += [f"    {process}" for process in world.processes]
    lines += [f"    {connection}" for connection in world.connections]
    return "\n".join(lines)
