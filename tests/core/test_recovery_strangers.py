"""A coordinator that was started again, and strangers who pretend to know its run."""

import pytest

from ringhaul import limits
from ringhaul.core.coordinator.machine import Coordinator, LinkAccepted
from ringhaul.core.steps import Received, Send
from ringhaul.ids import LinkId, PeerId
from ringhaul.wire.codec import Envelope
from ringhaul.wire.records import Address
from ringhaul.wire.session_messages import Refused, Resume

RUN_ID = b"r" * 16


@pytest.mark.parametrize("incarnation", [limits.INCARNATION_MAX + 1, 2**63 - 1])
def test_a_stranger_leaves_the_run_a_higher_incarnation(incarnation: int) -> None:
    coordinator = Coordinator(run_id=RUN_ID, incarnation=1, secret=b"s" * 16, is_new=False)
    coordinator.step(LinkAccepted(LinkId(1), "192.0.2.1"), 0.0)
    resume = Resume(
        version=limits.PROTOCOL_VERSION,
        peer=PeerId("stranger-1"),
        secret=bytes(16),
        group=0,
        addresses=(Address("192.0.2.1", 1),),
        min_world_size=1,
    )

    effects = coordinator.step(
        Received(LinkId(1), Envelope(message=resume, run_id=RUN_ID, incarnation=incarnation)), 0.0
    )

    assert coordinator.run.incarnation == 1
    answers = [e.envelope.message for e in effects if isinstance(e, Send)]
    assert [type(answer) for answer in answers] == [Refused]
