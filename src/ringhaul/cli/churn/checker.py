"""Judges the facts that the peers report: is every result right, and the same everywhere?

Pure: facts and instants go in, problems come out. It trusts no peer's own judgement: results
are computed again from the contributors that were named.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from ringhaul import limits
from ringhaul.cli.churn import program
from ringhaul.cli.churn.facts import Admitted, Called, Ended, Return, Synced
from ringhaul.cli.churn.program import Kind, Operation, Program

#: A call ends within this whatever happens once: the longest of the detectors (a member that
#: resumes its session or not, a link that stalls), a ring that is tried in vain and another, a
#: member that is silent then, and some for a busy machine. Time in which the peer itself is
#: stopped, or the coordinator is away, comes on top.
CALL_BOUND_S = (
    max(limits.SESSION_GRACE_S, limits.LINK_STALLED_S)
    + 2 * limits.PROPOSAL_S
    + limits.SILENCE_BUSY_S
    + 7.0
)
#: Operations whose results are remembered, to be compared with what slower peers report.
_KEPT_MAX = 5000
#: The same for rounds, revisions and generations.
_ROUNDS_KEPT_MAX = 200


@dataclass(slots=True)
class _Seen:
    """An operation as the first peer reported it, and the digests of the right results."""

    first: Called
    #: By rank where ranks get different results, else by 0.
    digests: dict[int, str] = field(default_factory=dict)


class Checker:
    """All that was reported so far, as far as later reports are compared with it."""

    def __init__(self, plan: Program) -> None:
        self._plan = plan
        self._seen: OrderedDict[tuple[int, int], _Seen] = OrderedDict()
        self._operations: OrderedDict[int, dict[int, Operation]] = OrderedDict()
        #: Of each revision: the first report.
        self._synced: OrderedDict[int, Synced] = OrderedDict()
        #: Of each generation: the ring that an `admit` returned, and the highest revision.
        self._rings: OrderedDict[int, Admitted] = OrderedDict()
        self._revisions: OrderedDict[int, int] = OrderedDict()
        #: Of each peer: its last generation and revision.
        self._generations: dict[str, int] = {}
        self._own_revisions: dict[str, int] = {}

    def check(self, fact: Return) -> list[str]:
        """What is wrong with this fact, in sentences; empty if nothing is."""
        match fact:
            case Called():
                found = self._check_called(fact)
            case Synced():
                found = self._check_synced(fact)
            case Admitted():
                found = self._check_admitted(fact)
            case Ended():
                return []
        return [f"{fact.peer}: {problem}" for problem in found]

    # -- operations ---------------------------------------------------------------------------

    def _check_called(self, fact: Called) -> list[str]:
        operation = self._operation(fact.round, fact.index)
        name = f"round {fact.round}, operation {fact.index}, {fact.kind}"
        if operation is None or operation.kind.value != fact.kind:
            return [f"{name} is no operation of the program"]
        found = self._check_generation(fact.peer, fact.generation)
        if fact.wrong is not None:
            found.append(f"{name} with {_names(fact.contributors)}: {fact.wrong}")
        try:
            numbers = [program.number_of(peer_id) for peer_id in fact.contributors]
            own = program.number_of(fact.peer)
            root = None if fact.root is None else program.number_of(fact.root)
        except ValueError as error:
            return [*found, f"{name} names a contributor that is no peer: {error}"]
        if own not in numbers or len(set(numbers)) != len(numbers):
            return [*found, f"{name}: contributors are {_names(fact.contributors)}"]
        seen = self._seen.setdefault((fact.round, fact.index), _Seen(fact))
        while len(self._seen) > _KEPT_MAX:
            self._seen.popitem(last=False)
        found += self._compare(name, fact, seen.first, operation)
        if found:
            return found
        if operation.is_lossy:
            bound = program.bound(operation, len(numbers))
            if not fact.error <= bound:
                found.append(f"{name}: an error of {fact.error:g}, {bound:g} is the bound")
            return found
        rank = numbers.index(own) if operation.kind is Kind.REDUCE_SCATTER else 0
        if rank not in seen.digests:
            sources = numbers if root is None else [root]
            wanted = program.expected(operation, sources, rank)
            seen.digests[rank] = program.digest(wanted)
        if fact.digest != seen.digests[rank]:
            found.append(f"{name} is not the exact result of {_names(fact.contributors)}")
        return found

    def _compare(self, name: str, fact: Called, first: Called, operation: Operation) -> list[str]:
        """Is this what another peer has reported of the same operation?"""
        if fact.contributors != first.contributors or fact.root != first.root:
            return [
                f"{name} has contributors {_names(fact.contributors)}, at {first.peer} it has "
                f"{_names(first.contributors)}"
            ]
        if fact.generation != first.generation:
            return [
                f"{name} returned in generation {fact.generation}, at {first.peer} in "
                f"{first.generation}"
            ]
        is_same_for_all = operation.kind is not Kind.REDUCE_SCATTER
        if is_same_for_all and fact.digest != first.digest:
            return [f"{name} has other bytes than at {first.peer}"]
        return []

    def _operation(self, round_: int, index: int) -> Operation | None:
        if round_ not in self._operations:
            operations = [o for block in self._plan.blocks(round_) for o in block.operations]
            self._operations[round_] = {o.index: o for o in operations}
            while len(self._operations) > _ROUNDS_KEPT_MAX:
                self._operations.popitem(last=False)
        return self._operations[round_].get(index)

    # -- state and membership -----------------------------------------------------------------

    def _check_synced(self, fact: Synced) -> list[str]:
        found = self._check_generation(fact.peer, fact.generation)
        own = self._own_revisions.get(fact.peer, 0)
        if fact.revision < own:
            found.append(f"revision {fact.revision} of the state follows {own}")
        self._own_revisions[fact.peer] = max(own, fact.revision)
        for generation, revision in reversed(self._revisions.items()):
            if generation < fact.generation and revision > fact.revision:
                found.append(
                    f"revision {fact.revision} of the state in generation {fact.generation}, in "
                    f"generation {generation} it was {revision}"
                )
                break
        highest = self._revisions.get(fact.generation, 0)
        self._revisions[fact.generation] = max(highest, fact.revision)
        first = self._synced.setdefault(fact.revision, fact)
        if fact.digest != first.digest:
            found.append(f"revision {fact.revision} of the state differs from that of {first.peer}")
        elif fact.contributors != first.contributors:
            found.append(
                f"revision {fact.revision} was synced by {_names(fact.contributors)}, at "
                f"{first.peer} by {_names(first.contributors)}"
            )
        for kept in (self._revisions, self._synced):
            while len(kept) > _ROUNDS_KEPT_MAX:
                kept.popitem(last=False)
        return found

    def _check_admitted(self, fact: Admitted) -> list[str]:
        found = self._check_generation(fact.peer, fact.generation)
        first = self._rings.setdefault(fact.generation, fact)
        while len(self._rings) > _ROUNDS_KEPT_MAX:
            self._rings.popitem(last=False)
        if fact.ring_order != first.ring_order:
            found.append(
                f"the ring of generation {fact.generation} is {_names(fact.ring_order)}, at "
                f"{first.peer} it is {_names(first.ring_order)}"
            )
        return found

    def _check_generation(self, peer: str, generation: int | None) -> list[str]:
        if generation is None:
            return []
        before = self._generations.get(peer, 0)
        self._generations[peer] = max(before, generation)
        return [f"generation {generation} follows {before}"] if generation < before else []


def overdue(peer: str, began_at: float, now: float, excused_s: float) -> str | None:
    """A call that has begun then and has not ended, or ended now: did it take too long?"""
    waited_s = now - began_at - excused_s
    if waited_s <= CALL_BOUND_S:
        return None
    return f"{peer}: a call has lasted {waited_s:.1f} s, {CALL_BOUND_S:g} s is the bound"


def _names(peer_ids: list[str]) -> str:
    return ", ".join(peer_id.partition("-")[0] for peer_id in peer_ids)
