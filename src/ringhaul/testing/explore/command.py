"""`python -m ringhaul.testing explore`: visit every state of small worlds, and report."""

import argparse
import multiprocessing
from collections.abc import Callable, Sequence

from ringhaul.testing.explore.scenarios import FAULTS, PROGRAMS, USUAL, scenario
from ringhaul.testing.explore.search import STATES_MAX, Findings, explore


def main(arguments: Sequence[str], tell: Callable[[str], None]) -> int:
    """Explore what was asked for; the exit code is 0 only if no promise was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m ringhaul.testing explore",
        description="Every order of deliveries in small worlds, with at most one fault. Without "
        "a world or a fault: those that take some minutes together.",
    )
    parser.add_argument("--world", choices=[*PROGRAMS, "all"], action="append")
    parser.add_argument("--fault", choices=[*FAULTS, "none", "all"], action="append")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--states", type=int, default=STATES_MAX, help="give up beyond so many")
    parser.add_argument("--acks", action="store_true", help="every message acknowledges others")
    options = parser.parse_args(arguments)
    worlds = options.world or ["all"]
    faults = options.fault or ["all"]
    pairs: Sequence[tuple[str, str]] = USUAL
    if options.world or options.fault:
        pairs = [
            (world, fault)
            for world in (PROGRAMS if "all" in worlds else worlds)
            for fault in ((*FAULTS, "none") if "all" in faults else faults)
        ]
    chosen = [(world, fault, options.states, options.acks) for world, fault in pairs]
    states = transitions = ends = broken = 0
    took_s = 0.0
    with multiprocessing.Pool(options.jobs) as pool:
        for findings in pool.imap_unordered(_explore, chosen, chunksize=1):
            tell(str(findings))
            for violation in findings.violations:
                tell(violation)
            states += findings.states
            transitions += findings.transitions
            ends += findings.ends
            took_s += findings.took_s
            broken += len(findings.violations)
    tell(
        f"{len(chosen)} worlds: {states} states, {transitions} transitions, {ends} ends, "
        f"{took_s:.0f} s of CPU; {broken} violations"
    )
    return 1 if broken else 0


def _explore(chosen: tuple[str, str, int, bool]) -> Findings:
    world, fault, states_max, acks = chosen
    faults = () if fault == "none" else (fault,)
    return explore(scenario(world, faults, acks=acks), states_max=states_max)
