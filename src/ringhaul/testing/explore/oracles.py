"""What is never allowed, and what the end of a run has to look like."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringhaul.core.peer.steps import Complete, Fail, View
from ringhaul.ids import PeerId
from ringhaul.testing.explore.world import Attempt, Call, Ended, Life, Violation, World, kept_if
from ringhaul.wire.coordinator_messages import Opened, Verdict

if TYPE_CHECKING:
    from ringhaul.testing.explore.draft import Draft
    from ringhaul.testing.explore.lab import Lab

#: After these faults a process that lives may be evicted: it was silent, or out of reach.
EVICTS = ("swallow", "cut")


def record_verdict(draft: Draft, verdict: Verdict) -> None:
    """A final verdict is given, or said again: there is one for each key of an era."""
    if verdict.generation < draft.admitted:
        return
    entry = (verdict.key, verdict.outcome)
    if entry in draft.verdicts:
        return
    for key, outcome in draft.verdicts:
        if key == verdict.key:
            raise Violation(f"{key} was {outcome}, and is {verdict.outcome} now")
    draft.verdicts |= {entry}


def record_outcome(draft: Draft, place: int, call: Call, effect: Complete | Fail) -> None:
    """A call has ended: in the same way as on all other members."""
    if call.key is None:
        if isinstance(effect, Fail) and (draft.fault is None or draft.fault[0] != "interrupt"):
            raise Violation(f"p{place}: admit failed: {effect.error!r}")
        return
    era = draft.processes[place].era
    if isinstance(effect, Fail):
        if draft.fault is None or draft.fault[0] != "interrupt":
            raise Violation(f"p{place}: {call.key} failed: {effect.error!r}")
        ended = Ended(era, call.key, type(effect.error).__name__, effect.view, None)
    else:
        ended = Ended(era, call.key, None, effect.view, call.got)
        if call.attempt is not None and call.got != effect.view.ring_order:
            raise Violation(f"p{place}: {effect.view} named for the values of {call.got}")
    for other in draft.outcomes:
        if (other.era, other.key) == (era, call.key) and other != ended:
            raise Violation(f"p{place}: {ended}, elsewhere {other}")
    draft.outcomes |= {ended}


def record_opening(draft: Draft, place: int, message: Opened) -> None:
    """A member sees a generation open: it looks the same to all."""
    view = View(
        generation=message.generation,
        ring_order=message.ring_order,
        counts=message.counts,
        joined=message.joined,
    )
    for other in draft.views:
        if other.generation == view.generation and other != view:
            raise Violation(f"p{place} sees {view}, another saw {other}")
    draft.views |= {view}


def check_log(draft: Draft, text: str) -> None:
    """Nobody is thrown out who lives and can be kept."""
    name, is_out, why = text.partition(" is out: ")
    if not is_out:
        return
    process = draft.processes[draft.lab.place_of(PeerId(name))]
    life = process.life
    kind = draft.fault[0] if draft.fault else ""
    if "broke the protocol" in why:
        raise Violation(f"the coordinator does not understand a peer: {text}")
    if why == "it left" and kind == "leave":
        return
    if process.id != name:
        return  # its connection broke before the welcome: it has said hello again
    if life is Life.ALIVE and kind not in EVICTS:
        raise Violation(f"a live peer was thrown out: {text}")
    if "was refused" in why and life is not Life.DEAD:
        raise Violation(f"taken for dead: {text}")


def check_close(draft: Draft, place: int, reason: str) -> None:
    """A peer closes its connection only when it stops, or has heard nothing for long."""
    if reason != "stopped" and not reason.startswith("nothing heard"):
        raise Violation(f"p{place} does not understand the coordinator: {reason}")


def check_stop(draft: Draft, place: int, error: object) -> None:
    """A peer stops only because it wants to, or was thrown out for a reason."""
    kind = draft.fault[0] if draft.fault else ""
    if error is not None and kind not in EVICTS:
        raise Violation(f"p{place} stops: {error!r}")
    if error is None and kind != "leave":
        raise Violation(f"p{place} stops unasked")


def still_needed(draft: Draft) -> frozenset[tuple[Attempt, int]]:
    """Parts of attempts that somebody may still need; of older rings all is dropped."""
    oldest = _oldest_ring(draft)
    return kept_if(draft.posted, lambda part: part[0].generation >= oldest)


def unheard_views(draft: Draft) -> frozenset[View]:
    """Of generations that somebody may still hear of."""
    oldest = _oldest_ring(draft)
    return kept_if(draft.views, lambda view: view.generation >= oldest)


def _oldest_ring(draft: Draft) -> int:
    alive = (p.ring.generation for p in draft.processes if p.life is Life.ALIVE and p.ring)
    return min(alive, default=0)


def unheard_outcomes(draft: Draft) -> frozenset[Ended]:
    """Of calls that somebody is still to come to, or in."""

    def is_awaited(ended: Ended) -> bool:
        for process in draft.processes:
            if process.life is not Life.ALIVE or process.era > ended.era:
                continue
            if ended.view is not None and process.id not in ended.view.ring_order:
                continue
            has_come = dict(process.ordinals).get(ended.key.tag, 0) > ended.key.ordinal
            is_in = any(call.key == ended.key for call in process.calls)
            if process.era < ended.era or not has_come or is_in:
                return True
        return False

    return kept_if(draft.outcomes, is_awaited)


def is_settled(lab: Lab, world: World) -> bool:
    """Whether all programs have ended, and the machines agree on who is there."""
    run = lab.coordinators.machine(world.coordinator).run
    group = run.groups[0]
    alive = [place for place, p in enumerate(world.processes) if p.life is Life.ALIVE]
    for place in alive:
        process = world.processes[place]
        state = lab.peers.machine(process.cell).state
        if process.calls or not state.is_resumed or state.peer_id not in run.peers:
            return False
        if run.peers[state.peer_id].link is None:
            return False
        if process.is_member != (state.peer_id in group.ring_order):
            return False
        if process.is_member and (
            process.steps < len(lab.scripts[place]) or state.generation != group.generation
        ):
            return False
    if len(run.peers) != len(alive) or group.wanted or group.doubts:
        return False
    if group.open:
        raise Violation(f"open, though all calls have ended: {list(group.open)}")
    return True
