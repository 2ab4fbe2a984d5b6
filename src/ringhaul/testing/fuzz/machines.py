"""The two state machines under fire: valid messages, nearly fitting, in any order.

The coordinator hears a member that lies; a peer hears a coordinator that does.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from ringhaul.core.coordinator.model import Effect as CoordinatorEffect
from ringhaul.core.peer.model import Phase
from ringhaul.core.steps import Close, LinkLost, Received, Send
from ringhaul.errors import WireError
from ringhaul.ids import Generation, OpKey, PeerId
from ringhaul.testing.coordinator_script import SUM, Script
from ringhaul.testing.fuzz.makers import Maker
from ringhaul.testing.fuzz.mutants import mutated_bytes, mutated_message
from ringhaul.testing.peer_script import COUNTS, ME, OTHER, TICKET, PeerScript
from ringhaul.wire import coordinator_messages, session_messages
from ringhaul.wire.codec import Envelope, decode, encode
from ringhaul.wire.coordinator_messages import (
    Began,
    Finished,
    GiveUp,
    LinkFailed,
    LinkReady,
    Opened,
    Outcome,
    Proposal,
    Verdict,
    Vote,
)
from ringhaul.wire.framing import FrameReader, frame
from ringhaul.wire.message import MESSAGES, Message
from ringhaul.wire.session_messages import Evicted, Heartbeat, Leave

#: Small numbers meet more often.
_SMALL = 4
_CONVERSATIONS = 200
_FITTING = 30
_ROOMS = (coordinator_messages.__name__, session_messages.__name__)
_KINDS = [kind for kind in MESSAGES.values() if kind.__module__ == coordinator_messages.__name__]


class _Conversation:
    """Frames of messages, one after the other."""

    names: Sequence[str] = ()

    def originals(self, dice: random.Random) -> Sequence[bytes]:
        """A few messages each, of any kind."""
        maker = Maker(dice, names=self.names, small=_SMALL)

        def say() -> bytes:
            kinds = dice.choices(_KINDS, k=dice.randint(1, 6))
            return b"".join(frame(encode(maker.envelope(kind))) for kind in kinds)

        fitting = [
            b"".join(frame(encode(Envelope(message=message, seq=1))) for message in story)
            for story in self.stories()
        ]
        return [say() for _ in range(_CONVERSATIONS)] + fitting * _FITTING

    def stories(self) -> list[list[Message]]:
        """Conversations that are as they should be."""
        return []

    def mutate(self, data: bytes, dice: random.Random) -> bytes:
        """Of the bytes, or of the values of one message."""
        try:
            frames = FrameReader().feed(data)
        except WireError:  # a mutant of a mutant
            frames = []
        if not frames or dice.random() < 0.2:
            return mutated_bytes(data, dice)
        index = dice.randrange(len(frames))
        frames[index] = mutated_message(frames[index], dice)
        return b"".join(frame(payload) for payload in frames if payload)

    def messages(self, data: bytes) -> tuple[list[Envelope], bool]:
        """What of it are messages, and whether all is."""
        found: list[Envelope] = []
        try:
            found.extend(decode(payload) for payload in FrameReader().feed(data))
        except WireError:
            return found, False
        return found, bool(found)


class LyingMember(_Conversation):
    """A member of a ring of three says anything to the coordinator."""

    name = "coordinator machine"

    def __init__(self) -> None:
        script = Script()
        script.found("a", "b", "liar")
        self.names = tuple(script.ids[name] for name in ("a", "b", "liar"))

    def stories(self) -> list[list[Message]]:
        """A collective; an admit; a broken link and its repair."""
        key, generation = OpKey(None, 0), Generation(1)
        began = Began(generation=generation, key=key, call_index=0, signature=SUM)
        vote = Vote(generation=generation, index=0, calls_made=0, fresh=True)
        broken = LinkFailed(
            generation=generation, neighbour=PeerId(self.names[0]), refused=True, reason="reset"
        )
        given_up = GiveUp(generation=generation, key=key, outcome=Outcome.FAILED, detail="")
        return [
            [began, Finished(generation=generation, key=key), vote],
            [vote, began, given_up],
            [broken, LinkReady(generation=Generation(2)), broken, Leave()],
        ]

    def feed(self, data: bytes) -> bool:
        """The honest stay, whatever is said; True if all of it was allowed."""
        script = Script()
        script.found("a", "b", "liar")
        link = script.links["liar"]
        envelopes, is_whole = self.messages(data)
        seq = script.seqs["liar"]
        for envelope in envelopes:
            said = replace(envelope, run_id=b"r" * 16, incarnation=1)
            if envelope.seq:  # some numbers are right
                seq += 1
                said = replace(said, seq=seq, ack=min(envelope.ack, 3))
            self._react(script, script.step(Received(link, said)))
        if not is_whole:
            self._react(script, script.step(LinkLost(link, "not a message")))
        for name in ("a", "b"):
            assert script.ids[name] in script.coordinator.run.peers, f"{name} is out"
        return is_whole and script.ids["liar"] in script.coordinator.run.peers

    def _react(self, script: Script, effects: Sequence[CoordinatorEffect]) -> None:
        """The honest answer pings and make their links."""
        for effect in effects:
            for name in ("a", "b"):
                mine = script.links[name]
                assert not (isinstance(effect, Close) and effect.link == mine)
                if not isinstance(effect, Send) or effect.link != mine:
                    continue
                message = effect.envelope.message
                if isinstance(message, Heartbeat) and message.ping:
                    script.say(name, Heartbeat(pong=message.ping), seq=0)
                    self._react(script, list(script.effects))
                elif isinstance(message, Proposal):
                    assert script.ids[name] in message.ring_order


class LyingCoordinator(_Conversation):
    """What claims to be the coordinator says anything to a member."""

    name = "peer machine"
    names = (ME, OTHER, PeerId("third-3"))

    def stories(self) -> list[list[Message]]:
        """Verdicts; another ring; the end."""
        key, first, second = OpKey(None, 0), Generation(1), Generation(2)
        ring = (ME, OTHER)

        def verdict(outcome: Outcome) -> Verdict:
            return Verdict(
                generation=first, key=key, outcome=outcome, ring_order=ring, counts=COUNTS
            )

        proposal = Proposal(generation=second, ring_order=ring, next=TICKET, previous=TICKET)
        opened = Opened(
            generation=second, ring_order=ring, admission=True, joined=(), counts=COUNTS
        )
        return [
            [verdict(Outcome.ABORTED), proposal, opened, verdict(Outcome.LOST)],
            [proposal, opened, replace(proposal, generation=Generation(3))],
            [verdict(Outcome.COMMITTED), Evicted(reason="silent")],
        ]

    def feed(self, data: bytes) -> bool:
        """The machine stays whole; True if it did not close the connection."""
        script = PeerScript()
        script.join()
        script.call(1)
        envelopes, is_whole = self.messages(data)
        seq = script.seq
        for envelope in envelopes:
            said = replace(envelope, run_id=b"r" * 16, incarnation=1, ack=0)
            if envelope.seq:
                seq += 1
                said = replace(said, seq=seq)
            script.step(Received(script.link, said))
        state = script.peer.state
        return is_whole and state.link is not None and state.phase is Phase.MEMBER
