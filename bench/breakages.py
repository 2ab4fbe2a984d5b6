"""Deliberate mistakes in the state machines, each one that somebody might make."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Breakage:
    """One change of one place. `old` stands exactly once in the file."""

    name: str
    file: str
    old: str
    new: str


_COLLECTIVES = "core/coordinator/collectives.py"
_MEMBERS = "core/coordinator/members.py"
_OPENINGS = "core/coordinator/openings.py"
_ADMISSION = "core/coordinator/admission.py"
_SYNC = "core/coordinator/state_sync.py"
_RECOVERY = "core/coordinator/recovery.py"
_REPORTS = "core/coordinator/reports.py"
_CATCH_UP = "core/coordinator/catch_up.py"
_SESSION = "core/session.py"
_PEER = "core/peer/collective.py"
_PEER_MEMBERSHIP = "core/peer/membership.py"
_PEER_CONTROL = "core/peer/control.py"

BREAKAGES = (
    Breakage(
        "commits after a loss when any survivor has finished",
        _COLLECTIVES,
        "if survivors and all(p in collective.finished for p in survivors):",
        "if survivors and any(p in collective.finished for p in survivors):",
    ),
    Breakage(
        "commits before the last member has finished",
        _COLLECTIVES,
        "if len(collective.finished) == len(group.ring_order):",
        "if len(collective.finished) >= max(1, len(group.ring_order) - 1):",
    ),
    Breakage(
        "forgets that a key has a verdict",
        _COLLECTIVES,
        "        group.closed[key] = None\n",
        "        pass\n",
    ),
    Breakage(
        "takes what was begun in an older generation for begun in this one",
        _COLLECTIVES,
        "    if message.generation != group.generation or group.wanted is not None:\n"
        "        return  # it crossed our proposal",
        "    if group.wanted is not None:\n        return  # it crossed our proposal",
    ),
    Breakage(
        "takes what was finished in an older generation for finished in this one",
        _COLLECTIVES,
        "    if message.generation != group.generation or group.wanted is not None:\n"
        "        return\n",
        "    if group.wanted is not None:\n        return\n",
    ),
    Breakage(
        "runs operations again after a loss though a caller wants the error",
        _COLLECTIVES,
        "s.on_loss is OnLoss.RAISE or s.root == lost",
        "s.root == lost",
    ),
    Breakage(
        "does not send again when a session is resumed",
        _MEMBERS,
        "    run.send_again(peer)\n",
        "",
    ),
    Breakage(
        "does not fence the older connection",
        _MEMBERS,
        '        run.close(peer.link, f"{peer.id} resumed on another connection")\n',
        "        pass\n",
    ),
    Breakage(
        "opens no new generation after a loss",
        _MEMBERS,
        "        group.wanted = group.wanted or Wanted.REPAIR\n",
        "",
    ),
    Breakage(
        "goes on with a proposal that names a lost peer",
        _MEMBERS,
        "    if was_proposed:\n        group.proposal = None\n",
        "",
    ),
    Breakage(
        "is never out of patience with a silent member that is awaited",
        _MEMBERS,
        "        if is_awaited(run, peer):\n            patience_s = peer.arrivals",
        "        if False:\n            patience_s = peer.arrivals",
    ),
    Breakage(
        "has no patience when all fall silent together",
        _MEMBERS,
        "patience_s = max(patience_s, options.session_grace_s)",
        "pass",
    ),
    Breakage(
        "needs no second witness for a death",
        _OPENINGS,
        "        if accused.link is None:\n            if doubt.refused:\n",
        "        if accused.link is None or doubt.refused:\n            if True:\n",
    ),
    Breakage(
        "waits for ever for a link that two live peers report broken",
        _OPENINGS,
        "            _give_up_link(run, group, doubt)\n            return True\n",
        "            pass\n",
    ),
    Breakage(
        "gives the number of a failed proposal again",
        _OPENINGS,
        "group.proposed_generation = Generation(group.proposed_generation + 1)",
        "group.proposed_generation = Generation(group.generation + 1)",
    ),
    Breakage(
        "opens a generation before the last link is ready",
        _OPENINGS,
        "proposed.ready.issuperset(proposed.ring_order)",
        "len(proposed.ready) >= max(1, len(proposed.ring_order) - 1)",
    ),
    Breakage(
        "proposes the same ring again and again",
        _OPENINGS,
        "        group.unusable.add(pair)\n",
        "        pass\n",
    ),
    Breakage(
        "believes a report about a link of an older ring",
        _OPENINGS,
        "    if message.generation != generation or (group.wanted and not group.proposal):\n",
        "    if group.wanted and not group.proposal:\n",
    ),
    Breakage(
        "lets peers in while operations are open",
        _ADMISSION,
        "    if any(group.wanted or group.open for group in run.groups.values()):\n",
        "    if any(group.wanted for group in run.groups.values()):\n",
    ),
    Breakage(
        "lets peers in when one member has voted",
        _ADMISSION,
        "    if not all(run.has_voted(member) for member in members):\n",
        "    if members and not any(run.has_voted(member) for member in members):\n",
    ),
    Breakage(
        "lets a newcomer wait in admit while the members do something else",
        _ADMISSION,
        "    if message.fresh and group.is_begun:\n",
        "    if False:\n",
    ),
    Breakage(
        "elects a state that does not follow on the last one",
        _SYNC,
        "contents = [c for c in contents if c == group.state or c[0] == revision + 1]",
        "assert revision >= 0",
    ),
    Breakage(
        "handles a message twice that was sent twice",
        _SESSION,
        "is_new = envelope.seq == self.received + 1",
        "is_new = envelope.seq > 0",
    ),
    Breakage(
        "forgets one message more than was acknowledged",
        _SESSION,
        "self._unacknowledged[0][0] <= envelope.ack:",
        "self._unacknowledged[0][0] <= envelope.ack + 1:",
    ),
    Breakage(
        "counts the time in which the process did not run",
        "core/clock.py",
        "                self.stalled_s += gap_s\n",
        "                pass\n",
    ),
    Breakage(
        "does not send again after it has resumed",
        _PEER_CONTROL,
        "        state.send_again()\n",
        "        pass\n",
    ),
    Breakage(
        "does not begin again in the next generation",
        _PEER,
        "        elif call.attempt is None:\n            _begin(state, call)\n",
        "",
    ),
    Breakage(
        "takes the end of an older transfer for that of this attempt",
        _PEER,
        "if call is None or call.attempt != event.generation or call.is_finished:",
        "if call is None or call.attempt is None or call.is_finished:",
    ),
    Breakage(
        "forgets a failure that its caller has yet to come to",
        _PEER,
        "            state.failures[message.key] = Failure(verdict=message, view=known)\n",
        "            if call is not None:\n"
        "                state.failures[message.key] = Failure(verdict=message, view=known)\n",
    ),
    Breakage(
        "tells of a loss before the next generation is open",
        _PEER,
        "known = view if message.outcome is not Outcome.LOST or is_repaired else None",
        "known = view",
    ),
    Breakage(
        "counts operations on over an admission",
        _PEER_MEMBERSHIP,
        "        state.ordinals.clear()\n",
        "",
    ),
    Breakage(
        "does not vote again after a repair",
        _PEER_MEMBERSHIP,
        "        state.send(state.admit.vote)\n",
        "",
    ),
    Breakage(
        "reports a broken link once, also when a refusal is news",
        _PEER_MEMBERSHIP,
        "for refused in (event.refused, True)}",
        "for refused in (False, True)}",
    ),
    Breakage(
        "lets a skipped admit that was given up end the next one",
        _ADMISSION,
        "    if peer.vote is None:\n        return  # its own",
        "    if False:\n        return  # its own",
    ),
    Breakage(
        "restarted: takes back who was lost by a verdict",
        _REPORTS,
        "if decision.outcome in (Outcome.LOST, Outcome.ABORTED):",
        "if False:",
    ),
    Breakage(
        "restarted: takes back whom a later proposal left out",
        _REPORTS,
        "told.outsiders.update({p: _WENT_ON for p in opened.ring_order if p not in proposed})",
        "pass",
    ),
    Breakage(
        "restarted: takes back who missed what the others have committed",
        _CATCH_UP,
        "            if decision.key not in finished:\n",
        "            if False:\n",
    ),
    Breakage(
        "restarted: commits an attempt that was aborted",
        _RECOVERY,
        "        and message.key in told[peer.group].aborted\n",
        "        and False\n",
    ),
    Breakage(
        "restarted: uses numbers of proposals again that only absent peers have heard",
        _RECOVERY,
        "Generation(known + GENERATIONS_SKIPPED)",
        "Generation(known)",
    ),
    Breakage(
        "restarted: goes on before its members are back",
        _RECOVERY,
        "    return not awaited and has_waited\n",
        "    return has_waited\n",
    ),
    Breakage(
        "restarted: tells nobody what others have heard",
        _CATCH_UP,
        "        run.send(peer, decision)\n",
        "        pass\n",
    ),
    Breakage(
        "restarted: does not open what some have not heard is open",
        _CATCH_UP,
        "        run.send(peer, opened)\n",
        "        pass\n",
    ),
    Breakage(
        "restarted: tells nothing that was decided while a generation was opened",
        _CATCH_UP,
        "since = report.last_number if took_part else",
        "since = report.last_number if False else",
    ),
    Breakage(
        "restarted: takes back who missed the end of an admit",
        _CATCH_UP,
        "    if _admits_known(run, report, told, news) < run.admit_index:\n",
        "    if False:\n",
    ),
)
