"""The small worlds that are explored: two members, one that joins, one collective."""

from ringhaul.testing.explore.lab import BARRIER, SUM, Request, Scenario, Script

REDUCE: Script = ((Request(SUM),),)
ADMIT_THEN_BARRIER: Script = ((Request(None),), (Request(BARRIER),))
BARRIER_ONLY: Script = ((Request(BARRIER),),)

FAULTS = ("kill", "vanish", "leave", "interrupt", "swallow", "reset", "break", "cut")

PROGRAMS: dict[str, tuple[tuple[Script, ...], tuple[Script, ...]]] = {
    # nobody is let in: the newcomer waits, and is counted
    "reduce": ((REDUCE, REDUCE), (REDUCE,)),
    "pair": ((REDUCE, REDUCE), ()),
    "admit": ((ADMIT_THEN_BARRIER,) * 2, (BARRIER_ONLY,)),
    # the newcomer's first call is `admit`: it counts, or is skipped
    "votes": ((((Request(None),), *ADMIT_THEN_BARRIER),) * 2, (ADMIT_THEN_BARRIER,)),
}

#: Explored unless something else is asked for: all of it takes some minutes of CPU.
USUAL = (
    *(("pair", fault) for fault in (*FAULTS, "none")),
    *(("reduce", fault) for fault in (*FAULTS[:6], "none")),
    ("admit", "none"),
    ("admit", "kill"),
    ("votes", "none"),
)


def scenario(program: str, faults: tuple[str, ...] = (), *, acks: bool = False) -> Scenario:
    """A program with what may happen to it, once."""
    members, joiners = PROGRAMS[program]
    name = f"{program}, {' or '.join(faults) or 'no fault'}"
    return Scenario(name=name, members=members, joiners=joiners, faults=faults, acks=acks)
