"""The oracles: what all members have to agree on, and which rare paths a run has seen."""

from collections import Counter, defaultdict

from ringhaul.core.coordinator.model import Effect as CoordinatorEffect
from ringhaul.core.coordinator.model import Forget, Save
from ringhaul.core.peer.steps import View
from ringhaul.core.steps import Log, Send
from ringhaul.ids import OpKey, PeerId
from ringhaul.wire.coordinator_messages import (
    Opened,
    Outcome,
    Proposal,
    StillWaiting,
    SyncPlan,
    Verdict,
    VoteOutcome,
    VoteResult,
)
from ringhaul.wire.session_messages import Evicted, Resumed

#: Paths a campaign has to reach, or it proves little.
RARE_PATHS = (
    "opened by admission",
    "opened by repair",
    *(f"verdict {outcome.value}" for outcome in Outcome),
    *(f"vote {outcome.value}" for outcome in VoteOutcome if outcome is not VoteOutcome.MISMATCH),
    "doubt settled: the neighbour lives",
    "lost by two witnesses",
    "lost by silence",
    "lost after the grace of its session",
    "left in an orderly way",
    "no ring could include it",
    "session resumed",
    "older connection fenced",
    "still waiting was reported",
    "committed after several attempts",
    "committed with a contributor that is gone",
    "finished, then aborted",
    "came to a key that had failed",
    "root lost in the middle",
    "root lost before the call",
    "below min_world_size",
    "state fetched",
    "state fetched from several",
    "state fetch resumed",
    "state source lost",
    "state lost with its last holder",
    "wrong block refused",
    "block given by a fellow",
    "killed between two effects",
    "admitted by a proposal after a failed one",
    "held back by a clogged connection",
    "swizzled",
    "control connection cut one way, up",
    "control connection cut one way, down",
    "half-open, only the peer knows",
    "half-open, only the coordinator knows",
    "a link swallowed all data",
    "a slow link",
    "interpreter held",
    "coordinator killed between two effects",
    "coordinator started again with its journal",
    "coordinator started again without a journal",
    "session begun anew",
    "told of an opening after a restart",
    "told of a decision after a restart",
    "an admission completed in another group",
    "came back after the others went on",
    "members did not come back",
)

_LOGGED = {
    " broke: ": "doubt settled: the neighbour lives",
    " was refused: ": "lost by two witnesses",
    "is out: nothing was heard": "lost by silence",
    "is out: its control connection was closed for": "lost after the grace of its session",
    "is out: it left": "left in an orderly way",
    "is out: no ring can include it": "no ring could include it",
    "resumed its session": "session resumed",
    "began its session anew": "session begun anew",
    " is told that generation ": "told of an opening after a restart",
    " is told of decision ": "told of a decision after a restart",
    "is completed in group": "an admission completed in another group",
    "the others went on without it": "came back after the others went on",
    "it did not come back": "members did not come back",
}


class OracleError(AssertionError):
    """The machines broke a promise."""


class Ledger:
    """Outcomes of all operations and views of all generations, compared as they come."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._outcomes: dict[tuple[int, int, OpKey], tuple[str, object]] = {}
        self._views: dict[tuple[int, int], tuple[str, View]] = {}
        #: Who got each of them.
        self._witnesses: defaultdict[tuple[object, ...], set[str]] = defaultdict(set)
        #: Members whom a coordinator that was started again went on without: they may still hear
        #: what was under way to them, before they are told that they are out.
        self._left_out: set[str] = set()
        self._proposed: dict[tuple[int, int], tuple[PeerId, ...]] = {}
        self._proposed_in: dict[PeerId, int] = {}

    def record_outcome(
        self, who: str, group: int, era: int, key: OpKey, outcome: tuple[object, ...]
    ) -> None:
        """One member's caller got this; all others have to get the same."""
        if who in self._left_out:
            return
        self._witnesses[group, era, key].add(who)
        first, theirs = self._outcomes.setdefault((group, era, key), (who, outcome))
        if theirs != outcome:
            raise OracleError(
                f"group {group}, admitted in {era}, {key}: {first} got {theirs}, {who} {outcome}"
            )

    def record_opening(self, who: str, group: int, view: View) -> None:
        """One member's caller sees this generation; it looks the same to all."""
        if who in self._left_out:
            return
        self._witnesses[group, view.generation].add(who)
        first, theirs = self._views.setdefault((group, view.generation), (who, view))
        if theirs != view:
            raise OracleError(f"group {group}: {first} sees {theirs}, {who} sees {view}")

    def forget_all_but(self, names: set[str]) -> None:
        """Forget what only others have seen: a coordinator that was started again cannot know.

        A promise is about members. Proposals that nobody has heard may be numbered anew.
        """
        witnesses = {name for heard in self._witnesses.values() for name in heard}
        self._left_out |= witnesses - names
        for key in [key for key in self._outcomes if not self._witnesses[key] & names]:
            del self._outcomes[key]
        for place in [place for place in self._views if not self._witnesses[place] & names]:
            del self._views[place]
        self._proposed.clear()

    def check_generation(self, group: int, message: Proposal) -> None:
        """Each generation of a group has one ring, however often it is sent."""
        ring_order = self._proposed.setdefault((group, message.generation), message.ring_order)
        if ring_order != message.ring_order:
            raise OracleError(f"group {group}: {message} after {ring_order}")

    def watch_coordinator(self, effects: list[CoordinatorEffect]) -> None:
        """Count what the coordinator does."""
        for effect in effects:
            match effect:
                case Send(_, envelope):
                    path = self._name(envelope.message)
                    if path is not None:
                        self.seen[path] += 1
                case Log(text):
                    self._count_logged(text)
                case Save() | Forget():
                    pass
                case _:
                    if "resumed on another connection" in effect.reason:
                        self.seen["older connection fenced"] += 1

    def _count_logged(self, text: str) -> None:
        for words, path in _LOGGED.items():
            if words in text:
                self.seen[path] += 1

    def _name(self, message: object) -> str | None:
        match message:
            case Opened(
                admission=admission, joined=joined, generation=generation, ring_order=ring_order
            ):
                first = min(self._proposed_in.get(p, generation) for p in joined or ring_order)
                if joined and first < generation:
                    self.seen["admitted by a proposal after a failed one"] += 1
                return f"opened by {'admission' if admission else 'repair'}"
            case Verdict(outcome=outcome):
                return f"verdict {outcome.value}"
            case VoteResult(outcome=outcome):
                return f"vote {outcome.value}"
            case SyncPlan():
                return "state elected"
            case Resumed():
                return "resumed"
            case Evicted():
                return "evicted"
            case StillWaiting():
                return "still waiting was reported"
            case Proposal(ring_order=ring_order, generation=generation):
                for peer_id in ring_order:
                    self._proposed_in.setdefault(peer_id, generation)
                return "proposed"
            case _:
                return None
