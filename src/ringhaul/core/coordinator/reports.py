"""What the reports of a group's members mean, taken together. Pure conclusions, no changes.

Members may be one opening apart, in one group or in several: a generation was opened, and
the coordinator died before all heard of it. All its links were ready then, so every member of
it holds the proposal, and has every decision that came before that.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ringhaul.core.coordinator.model import Group, Recovery, Run
from ringhaul.ids import NO_GENERATION, Generation, OpKey, PeerId
from ringhaul.wire.coordinator_messages import (
    Began,
    Opened,
    Outcome,
    Report,
    Ring,
    Verdict,
    VoteResult,
)

_WENT_ON = "the others went on without it"


@dataclass(slots=True, kw_only=True)
class Told:
    """What the peers of one group have told."""

    group: Group
    #: The newest generation that anybody is in; None if no member has come back.
    opened: Opened | None
    admitted_generation: Generation
    proposed_generation: Generation
    #: Members that hold the proposal of that generation, but have not heard that it is open.
    late: set[PeerId] = field(default_factory=set)
    #: Those who were members once, and are not in that generation.
    outsiders: dict[PeerId, str] = field(default_factory=dict)
    #: What anybody has heard, in order.
    decisions: list[Verdict | VoteResult] = field(default_factory=list)
    #: Keys whose attempt in that generation was aborted: nobody's part of it counts any more.
    aborted: set[OpKey] = field(default_factory=set)
    #: Keys that have a verdict since the admission.
    closed: list[OpKey] = field(default_factory=list)
    #: Keys of `sync_state` calls.
    syncs: set[OpKey] = field(default_factory=set)
    is_begun: bool = False
    needs_opening: bool = False
    state: tuple[int, bytes] | None = None

    @property
    def opened_generation(self) -> Generation:
        """The generation that is open; 0 if none is known."""
        return self.opened.generation if self.opened is not None else NO_GENERATION


def read_reports(run: Run, recovery: Recovery) -> dict[int, Told]:
    """Conclude per group. Sets the run's counters, which are above all that was told."""
    last = newest_admission(recovery)
    if last is not None:
        run.admissions, run.admitted_after = last.admissions, last.admitted_after
        run.admitted = last.admitted
        for opening in last.admitted:  # also of groups of which nobody came back
            group = run.groups.setdefault(opening.group, Group(number=opening.group))
            group.proposed_generation = max(group.proposed_generation, opening.generation)
    told: dict[int, Told] = {}
    for number, group in run.groups.items():
        reports = reports_of(run, recovery, number)
        opened = _newest(reports)
        if last is not None and (opened is None or opened.admissions < last.admissions):
            # an admission is one of all groups: who has not even its proposal was out by then
            opened = _complete_admission(run, number, reports, opened, last)
        told[number] = _conclude(recovery, group, reports, opened)
    for report in recovery.reports.values():
        run.decisions = max(run.decisions, report.last_number)
    run.admit_index = _find_admit_index(run, recovery, told.values())
    return told


def newest_admission(recovery: Recovery) -> Opened | None:
    """Of those who came back, the opening of one that has heard of the last admission."""
    openings = [r.opened for r in recovery.reports.values() if r.opened is not None]
    return max(openings, key=lambda opened: opened.admissions, default=None)


def reports_of(run: Run, recovery: Recovery, number: int) -> dict[PeerId, Report]:
    return {p: r for p, r in recovery.reports.items() if run.peers[p].group == number}


def _newest(reports: dict[PeerId, Report]) -> Opened | None:
    openings = [report.opened for report in reports.values() if report.opened is not None]
    return max(openings, key=lambda opened: opened.generation, default=None)


def _complete_admission(
    run: Run, number: int, reports: dict[PeerId, Report], before: Opened | None, elsewhere: Opened
) -> Opened | None:
    """An admission that other groups have heard of is one of this group too, if it took part.

    Its members were ready then: each holds the proposal, if not more.
    """
    ring = completed_ring(number, reports.values(), elsewhere)
    if ring is None or (before is not None and ring.generation <= before.generation):
        return None
    members = before.ring_order if before is not None else ()
    run.log(f"the admission of generation {ring.generation} is completed in group {number}")
    return Opened(
        generation=ring.generation,
        ring_order=ring.ring_order,
        admission=True,
        joined=tuple(p for p in ring.ring_order if p not in members),
        counts=elsewhere.counts,
        admissions=elsewhere.admissions,
        admitted_after=elsewhere.admitted_after,
        opened_after=elsewhere.admitted_after,
        admitted=elsewhere.admitted,
    )


def completed_ring(number: int, reports: Iterable[Report], elsewhere: Opened) -> Ring | None:
    """The ring that an admission opened in a group, if a member of it has come back."""
    generations = {opening.group: opening.generation for opening in elsewhere.admitted}
    rings = [report.proposal for report in reports if report.proposal is not None]
    return next((ring for ring in rings if ring.generation == generations.get(number)), None)


def _conclude(
    recovery: Recovery, group: Group, reports: dict[PeerId, Report], opened: Opened | None
) -> Told:
    proposals = [r.proposal.generation for r in reports.values() if r.proposal is not None]
    generation = opened.generation if opened is not None else NO_GENERATION
    told = Told(
        group=group,
        opened=opened,
        admitted_generation=generation,
        proposed_generation=max([generation, *proposals]),
    )
    if opened is None:
        members = [peer_id for peer_id, report in reports.items() if report.opened is not None]
        told.outsiders.update(dict.fromkeys(members, _WENT_ON))
        return told
    here = {p: r for p, r in reports.items() if r.opened and r.opened.generation == generation}
    if not opened.admission:
        admitted = [report.admitted_generation for report in here.values()]
        told.admitted_generation = max(admitted, default=told.admitted_generation)
    for peer_id, report in reports.items():
        if peer_id in here and peer_id in opened.ring_order:
            continue
        holds_it = report.proposal is not None and report.proposal.generation == generation
        if peer_id in opened.ring_order and holds_it:
            told.late.add(peer_id)
        elif report.opened is not None:
            told.outsiders[peer_id] = _WENT_ON
    for report in here.values():
        # a ring is proposed without a member only when that one is out
        proposed = report.proposal.ring_order if report.proposal is not None else opened.ring_order
        told.outsiders.update({p: _WENT_ON for p in opened.ring_order if p not in proposed})
    told.is_begun = any(report.call_count > 0 for report in here.values())
    told.needs_opening = any(
        report.needs_opening or report.proposal is not None for report in here.values()
    )
    committed = [
        report.committed
        for peer_id, report in reports.items()
        if report.committed is not None and peer_id not in told.outsiders
    ]
    if committed:
        newest = max(committed, key=lambda content: content.revision)
        told.state = newest.revision, newest.digest
    _conclude_operations(recovery, told, reports)
    return told


def _conclude_operations(recovery: Recovery, told: Told, reports: dict[PeerId, Report]) -> None:
    assert told.opened is not None
    decisions: dict[int, Verdict | VoteResult] = {}
    # who has not heard of the last admission has heard of nothing that came after it
    since = {
        peer_id
        for peer_id, report in recovery.reports.items()
        if report.opened is not None and report.opened.admissions == told.opened.admissions
    }
    for peer_id in since - reports.keys():  # those of all groups
        for message in recovery.heard[peer_id]:
            if isinstance(message, VoteResult):
                decisions[message.number] = replace(
                    message,
                    generation=told.opened.generation,
                    ring_order=told.opened.ring_order,
                )
    for peer_id in since & reports.keys():
        for message in recovery.heard[peer_id]:
            if isinstance(message, (Verdict, VoteResult)):
                decisions[message.number] = message
            elif isinstance(message, Began) and message.state is not None:
                told.syncs.add(message.key)
    told.decisions = [decisions[number] for number in sorted(decisions)]
    for decision in told.decisions:
        if isinstance(decision, Verdict) and decision.generation >= told.admitted_generation:
            if decision.outcome is Outcome.ABORTED:
                if decision.generation == told.opened_generation:
                    told.needs_opening = True
                    told.aborted.add(decision.key)
            else:
                told.closed.append(decision.key)
                told.is_begun = True
            if decision.outcome in (Outcome.LOST, Outcome.ABORTED):  # an eviction is final
                why = f"it was out before the coordinator was started again: {decision.detail}"
                told.outsiders.update(dict.fromkeys(decision.culprits, why))


def _find_admit_index(run: Run, recovery: Recovery, groups: Iterable[Told]) -> int:
    """How many `admit`s ended since the last admission, for anybody."""
    found = 0
    for told in groups:
        for peer_id, report in reports_of(run, recovery, told.group.number).items():
            if report.opened is None or report.opened.admissions < run.admissions:
                continue
            found = max(found, report.admit_index)
            for message in recovery.heard[peer_id]:
                if not isinstance(message, VoteResult):
                    continue
                if message.generation >= told.admitted_generation:
                    found = max(found, message.index + 1)
    return found
