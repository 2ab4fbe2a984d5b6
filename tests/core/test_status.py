"""What a stranger is told about a run: all that helps, no secret, and never too much."""

from dataclasses import replace

import pytest

from ringhaul import limits
from ringhaul.core.coordinator import status
from ringhaul.core.steps import Close, Received
from ringhaul.ids import Generation, OpKey, PeerId
from ringhaul.testing.coordinator_script import SUM, Script
from ringhaul.wire.codec import Envelope, decode, encode
from ringhaul.wire.coordinator_messages import Verdict
from ringhaul.wire.session_messages import Heartbeat
from ringhaul.wire.status_messages import (
    EventStatus,
    GroupStatus,
    OperationStatus,
    PeerState,
    PeerStatus,
    StatusReport,
    StatusRequest,
)

REQUEST = StatusRequest(version=limits.PROTOCOL_VERSION)


@pytest.fixture
def script() -> Script:
    return Script()


def ask(script: Script) -> StatusReport:
    """Connect as a stranger, ask, and be closed."""
    link = script.accept()
    effects = script.step(Received(link, Envelope(message=REQUEST)))
    assert [type(effect) for effect in effects][-1] is Close
    (report,) = (m for to, m in script.sent if to == link and isinstance(m, StatusReport))
    return report


def peer_of(report: StatusReport, script: Script, name: str) -> PeerStatus:
    (found,) = (peer for peer in report.peers if peer.peer == script.ids[name])
    return found


def test_an_empty_run_has_a_status(script: Script) -> None:
    report = ask(script)

    assert (report.peer_count, report.groups, report.operations) == (0, (), ())


def test_members_stand_by_rank_and_pending_peers_after_them(script: Script) -> None:
    script.found("a", "b")
    script.connect("c")
    script.now += 2.0

    report = ask(script)

    assert [peer.peer for peer in report.peers] == [script.ids[name] for name in "abc"]
    assert [peer.rank for peer in report.peers] == [0, 1, None]
    assert [peer.state for peer in report.peers][1:] == [PeerState.MEMBER, PeerState.PENDING]
    assert report.peers[0].since_s == report.peers[0].heard_s == 2.0
    assert (report.peer_count, report.pending_count) == (3, 1)
    assert report.groups[0].generation == 1
    assert report.groups[0].world_size == 2


def test_a_pending_peer_waits_for_votes_and_then_for_more_peers(script: Script) -> None:
    script.found("a", "b")
    script.connect("c")
    script.vote("a")
    waits = peer_of(ask(script), script, "c").waits_for
    assert waits == f"the members' admit: {script.ids['b']} have not called it"
    assert peer_of(ask(script), script, "a").waits_for == f"admit: {script.ids['b']}"

    lonely = Script()
    lonely.connect("x", min_world_size=3)

    assert peer_of(ask(lonely), lonely, "x").waits_for == "2 more peers: min_world_size is 3"


def test_an_open_operation_names_who_has_not_begun_then_who_has_not_finished(
    script: Script,
) -> None:
    script.found("a", "b", "c")
    script.begin("a")
    script.begin("b")
    (operation,) = ask(script).operations
    assert (operation.began_count, operation.not_begun) == (2, (script.ids["c"],))
    assert operation.call == str(SUM)
    assert peer_of(ask(script), script, "a").waits_for == f"all_reduce #0: {script.ids['c']}"

    script.begin("c")
    script.finish("a")

    (operation,) = ask(script).operations
    assert (operation.finished_count, operation.not_begun) == (1, ())
    assert operation.not_finished == (script.ids["b"], script.ids["c"])


def test_a_peer_without_connection_is_away_and_its_grace_is_told(script: Script) -> None:
    script.found("a", "b")
    script.lose_link("b")
    script.now += 3.0

    peer = peer_of(ask(script), script, "b")

    assert peer.state is PeerState.AWAY
    assert peer.rank == 1
    assert peer.waits_for == "its control connection, for 7 s more"


def test_a_ring_that_is_being_repaired_says_whose_links_are_missing(script: Script) -> None:
    script.found("a", "b", "c")
    script.kill("c", witness="b")
    script.ready("a")

    (group,) = ask(script).groups

    assert group.opening == f"repair, generation 2: links of {script.ids['b']}"


def test_what_a_heartbeat_says_of_the_outgoing_link_is_shown(script: Script) -> None:
    script.found("a", "b")
    script.say("a", Heartbeat(outgoing_bytes_per_s=12345), seq=0)

    report = ask(script)

    assert [peer.outgoing_bytes_per_s for peer in report.peers] == [12345, None]


def test_events_are_the_last_important_ones(script: Script) -> None:
    script.found("a", "b")
    for _ in range(2 * limits.STATUS_EVENTS_MAX):
        script.lose_link("b")
        script.resume("b")

    events = ask(script).events

    assert len(events) == limits.STATUS_EVENTS_MAX
    assert events[-1].text.endswith("resumed its session")


def test_asking_changes_nothing_and_the_run_goes_on(script: Script) -> None:
    script.found("a", "b")
    script.begin("a")
    script.begin("b")
    before = dict(script.coordinator.run.links)
    for _ in range(10):
        ask(script)
    assert script.coordinator.run.links == before

    script.finish("a")
    script.finish("b")

    assert len(script.heard("a", Verdict)) == 1


def test_a_status_holds_no_secret_and_no_address(script: Script) -> None:
    script.found("a", "b")
    data = encode(Envelope(message=ask(script)))

    for peer in script.coordinator.run.peers.values():
        assert peer.secret not in data
    assert b"192.0.2.9" not in data


def test_a_member_that_asks_on_its_session_breaks_the_protocol(script: Script) -> None:
    script.found("a", "b")
    script.say("a", REQUEST)

    assert script.ids["a"] not in script.coordinator.run.peers


def test_more_than_a_report_may_hold_is_left_out_and_counted(script: Script) -> None:
    for number in range(limits.STATUS_PEERS_MAX):
        script.connect(f"p{number}", group=0, min_world_size=limits.PEERS_MAX)
    for number in range(limits.STATUS_GROUPS_MAX):
        script.connect(f"g{number}", group=1 + number, min_world_size=2)

    report = ask(script)

    assert report.peer_count == limits.STATUS_PEERS_MAX + limits.STATUS_GROUPS_MAX
    assert report.group_count == limits.STATUS_GROUPS_MAX + 1
    assert len(report.peers) == limits.STATUS_PEERS_MAX
    assert len(report.groups) == limits.STATUS_GROUPS_MAX
    decode(encode(Envelope(message=report)))


def test_long_names_of_waiting_peers_are_cut(script: Script) -> None:
    names = [letter * limits.NAME_LENGTH_MAX for letter in "abcdef"]
    script.found(*names)
    script.begin(names[0], signature=replace(SUM, codec="x" * limits.NAME_LENGTH_MAX))

    report = ask(script)

    assert len(report.peers[0].waits_for) == limits.STATUS_TEXT_MAX
    assert len(decode(encode(Envelope(message=report))).message.operations) == 1  # type: ignore[attr-defined]


def test_the_largest_report_fits_into_a_frame() -> None:
    wide = "\U0001f600" * limits.STATUS_TEXT_MAX
    name = PeerId("\U0001f600" * (limits.NAME_LENGTH_MAX + 16))
    names = (name,) * limits.STATUS_NAMES_MAX
    largest = 2**63 - 1
    report = StatusReport(
        uptime_s=1e7,
        peer_count=largest,
        pending_count=largest,
        group_count=largest,
        operation_count=largest,
        groups=(
            GroupStatus(
                group=2**32 - 1,
                generation=Generation(largest),
                world_size=largest,
                opening=wide,
                unusable_pairs=largest,
                revision=largest,
            ),
        )
        * limits.STATUS_GROUPS_MAX,
        peers=(
            PeerStatus(
                peer=name,
                group=2**32 - 1,
                state=PeerState.PENDING,
                rank=largest,
                since_s=0.1,
                heard_s=0.1,
                waits_for=wide,
                outgoing_bytes_per_s=largest,
            ),
        )
        * limits.STATUS_PEERS_MAX,
        operations=(
            OperationStatus(
                group=2**32 - 1,
                key=wide,
                call=wide,
                since_s=0.1,
                began_count=largest,
                finished_count=largest,
                not_begun=names,
                not_finished=names,
            ),
        )
        * limits.STATUS_OPERATIONS_MAX,
        events=(EventStatus(age_s=0.1, text=wide),) * limits.STATUS_EVENTS_MAX,
    )

    assert decode(encode(Envelope(message=report))).message == report


def test_a_key_with_a_long_tag_is_cut(script: Script) -> None:
    assert len(status._short(str(OpKey("t" * limits.TAG_LENGTH_MAX, 1)))) == limits.STATUS_TEXT_MAX
