"""Every deadline of the coordinator but the heartbeat's, and what happens then.

Decides nothing: what a deadline is, and what it means, is decided where its topic is.
"""

from collections.abc import Callable, Iterator
from functools import partial

from ringhaul.core.coordinator import admission, collectives, members, openings, recovery
from ringhaul.core.coordinator.model import Run


def timers(run: Run) -> Iterator[tuple[float, Callable[[], None]]]:
    """Each deadline and what happens then. The only place that computes one exactly."""
    if run.recovery is not None:
        yield from recovery.timers(run, run.recovery)
        return
    for at, peer, why in members.silence_timers(run):
        yield at, partial(members.condemn, run, peer.id, why)
    for group in run.groups.values():
        if group.proposal is not None:
            at = group.proposal.since + run.options.proposal_s
            yield at, partial(openings.on_overdue, run, group)
        waiting = (c for c in group.open.values() if not c.is_reported)
        if (oldest := next(waiting, None)) is not None:  # they stand in their order
            at = oldest.since + run.options.waiting_report_s
            yield at, partial(collectives.report_waiting, run, group, oldest)
    waiting_since = admission.waiting_since(run)
    if waiting_since is not None:
        at = waiting_since + run.options.waiting_report_s
        yield at, partial(admission.report_waiting, run)


def quiet_until(run: Run) -> float:
    """Until when none of them is due, whoever is awaited then and whatever is begun.

    Most steps begin or end an operation, and make somebody awaited or not: to ask of all peers
    what that means for their timers would take longer than the step. Now, if it is not known.
    """
    if run.recovery is not None:
        return run.now
    options = run.options
    instants = [run.now + options.waiting_report_s]
    for peer in run.peers.values():
        if peer.link is None:
            instants.append(peer.link_lost_at + options.session_grace_s)
        else:
            patience_s = min(options.silence_busy_s, options.silence_idle_s)
            instants.append(peer.heard_at + patience_s)
    for group in run.groups.values():
        if group.proposal is not None:
            instants.append(group.proposal.since + options.proposal_s)
        waiting = (c for c in group.open.values() if not c.is_reported)
        if (oldest := next(waiting, None)) is not None:
            instants.append(oldest.since + options.waiting_report_s)
    if (waiting_since := admission.waiting_since(run)) is not None:
        instants.append(waiting_since + options.waiting_report_s)
    return min(instants)
