"""What a member that came back is told by a coordinator that was started again.

Decides in which order, and who cannot be told any more and is out.
"""

from ringhaul.core.coordinator.model import Peer, Recovery, Run
from ringhaul.core.coordinator.reports import Told
from ringhaul.wire.coordinator_messages import (
    Finished,
    Opened,
    Outcome,
    Report,
    Verdict,
    VoteResult,
)


def catch_up(run: Run, recovery: Recovery, told: Told, opened: Opened, peer: Peer) -> None:
    """Tell a member what only others have heard, in the order in which it happened."""
    report = recovery.reports[peer.id]
    peer.holds_state = report.committed is not None
    is_late = peer.id in told.late
    took_part = report.opened is not None and report.opened.admissions == opened.admissions
    # also what was decided after its links were ready and before the generation was open
    since = report.last_number if took_part else max(report.last_number, opened.opened_after)
    news = [decision for decision in told.decisions if decision.number > since]
    if _admits_known(run, report, told, news) < run.admit_index:
        recovery.missing[peer.id] = "the others have ended an `admit` without it"
        return
    before = [decision for decision in news if decision.number <= opened.opened_after]
    if not _tell_decisions(run, recovery, told, peer, before):
        return
    if is_late:
        run.log(f"{peer.id} is told that generation {opened.generation} is open")
        run.send(peer, opened)
    _tell_decisions(run, recovery, told, peer, news[len(before) :])


def _tell_decisions(
    run: Run,
    recovery: Recovery,
    told: Told,
    peer: Peer,
    news: list[Verdict | VoteResult],
) -> bool:
    """Tell a member decisions; False: it is out, as it has no part in one of them."""
    finished = {message.key for message in recovery.heard[peer.id] if isinstance(message, Finished)}
    for decision in news:
        if isinstance(decision, Verdict) and decision.outcome is Outcome.COMMITTED:
            if decision.key not in finished:
                recovery.missing[peer.id] = f"the others have committed {decision.key} without it"
                return False
            peer.holds_state = peer.holds_state or decision.key in told.syncs
        run.log(f"{peer.id} is told of decision {decision.number}", important=False)
        run.send(peer, decision)
    return True


def _admits_known(run: Run, report: Report, told: Told, news: list[Verdict | VoteResult]) -> int:
    """How many `admit`s since the last admission a member will have heard the end of."""
    is_current = report.opened is not None and report.opened.admissions == run.admissions
    heard = report.admit_index if is_current else 0
    ended = (
        decision.index + 1
        for decision in news
        if isinstance(decision, VoteResult) and decision.generation >= told.admitted_generation
    )
    return max(heard, *ended, 0)
