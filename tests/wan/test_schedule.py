"""The emulated wire without devices or clocks: what arrives when, given what was sent when."""

import struct

import pytest

from ringhaul.testing.wan.packets import OFFLOAD_BYTES, Packet, checksum, reverse
from ringhaul.testing.wan.schedule import Pacer, Schedule

MSS = 1000
HEADERS = 40
ACK, PSH, FIN, RST, SYN = 0x10, 0x08, 0x01, 0x04, 0x02


def packet(
    pieces: int = 1,
    *,
    source: int = 0,
    target: int = 1,
    port: int = 5000,
    flags: int = ACK,
    sequence: int = 7,
) -> Packet:
    """TCP as an offloading device hands it over; every byte of a piece is the piece's number."""
    payload = b"".join(bytes([number]) * MSS for number in range(pieces))
    addresses = bytes([10, 77, 0, source + 1, 10, 77, 0, target + 1])
    tcp = struct.pack(">HHIIBBHHH", port, 80, sequence, 99, 5 << 4, flags, 500, 0, 0)
    total = HEADERS + len(payload)
    ip = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, total, 1, 0, 64, 6, 0) + addresses)
    struct.pack_into(">H", ip, 10, checksum(ip))
    gso = (1, 1, HEADERS, MSS, 20, 16) if pieces > 1 else (1, 0, 0, 0, 20, 16)
    read = Packet.read(struct.pack("<BBHHHH", *gso) + bytes(ip) + tcp + payload)
    assert read is not None
    return read


def numbers(one: Packet) -> list[int]:
    """Which pieces are in it."""
    payload = one.data[OFFLOAD_BYTES + HEADERS :]
    return [payload[i] for i in range(0, len(payload), MSS)]


def arrivals(schedule: Schedule, until: float = 1e9) -> list[tuple[float, list[int]]]:
    """Everything under way, with its time."""
    found = []
    while (at := schedule.next_at()) is not None and at <= until:
        found += [(round(at, 9), numbers(one)) for at, _, one in schedule.due(at)]
    return found


def pacer(mbit: float = 8.0, buffer_bytes: float = 1e9) -> Pacer:
    """A pacer of 1 MB/s, unless told otherwise."""
    made = Pacer(mbit, 0.0)
    made.buffer_bytes = buffer_bytes
    return made


def test_a_packet_takes_the_delay_of_its_direction() -> None:
    schedule = Schedule(2)
    schedule.paths[0, 1].delay_s = 0.25
    schedule.send(1.0, packet())
    schedule.send(1.0, packet(source=1, target=0))

    assert arrivals(schedule) == [(1.0, [0]), (1.25, [0])]


def test_nothing_is_due_before_its_time() -> None:
    schedule = Schedule(2)
    schedule.paths[0, 1].delay_s = 0.25
    schedule.send(1.0, packet())

    assert schedule.due(1.2499) == []
    assert schedule.next_at() == 1.25


@pytest.mark.parametrize("place", ["uplink", "path", "flow", "downlink"])
def test_packets_leave_one_after_the_other_at_the_rate(place: str) -> None:
    schedule = Schedule(2)
    if place == "uplink":
        schedule.uplinks[0] = pacer()
    elif place == "downlink":
        schedule.downlinks[1] = pacer()
    elif place == "path":
        schedule.paths[0, 1].pacer = pacer()
    else:
        schedule.paths[0, 1].flow_cap = (8.0, 1000.0)
    for _ in range(3):
        schedule.send(1.0, packet())

    assert [at for at, _ in arrivals(schedule)] == [1.00104, 1.00208, 1.00312]


def test_two_hosts_share_the_downlink_of_a_third_in_order_of_arrival() -> None:
    schedule = Schedule(3)
    schedule.downlinks[2] = pacer()
    schedule.paths[0, 2].delay_s = 0.1
    schedule.send(0.0, packet(source=0, target=2))
    schedule.send(0.0, packet(4, source=1, target=2))

    assert arrivals(schedule) == [(0.00416, [0, 1, 2, 3]), (0.10104, [0])]


def test_what_does_not_fit_the_buffer_is_dropped_and_the_rest_passes() -> None:
    schedule = Schedule(2)
    schedule.uplinks[0] = pacer(buffer_bytes=5 * (MSS + HEADERS))
    schedule.send(0.0, packet(4))
    schedule.send(0.0, packet(4))
    schedule.send(0.0, packet(4))

    assert [pieces for _, pieces in arrivals(schedule)] == [[0, 1, 2, 3], [0]]
    assert schedule.counts == {"sent": 12, "buffer full": 7, "delivered": 5, "lost": 0}


def test_a_buffer_empties_at_its_rate() -> None:
    schedule = Schedule(2)
    schedule.uplinks[0] = pacer(buffer_bytes=4 * (MSS + HEADERS))
    schedule.send(0.0, packet(4))
    schedule.send(2 * (MSS + HEADERS) / 1e6, packet(4))

    assert [pieces for _, pieces in arrivals(schedule)] == [[0, 1, 2, 3], [0, 1]]


def lost_of(seed: int, batch: int, loss: float) -> list[int]:
    schedule = Schedule(2, seed)
    schedule.paths[0, 1].loss = loss
    for _ in range(2000 // batch):
        schedule.send(0.0, packet(batch))
    arrived = [number for _, pieces in arrivals(schedule) for number in pieces]
    assert len(arrived) + schedule.counts["lost"] == 2000
    return arrived


def test_losses_are_of_the_share_asked_and_the_same_for_a_seed() -> None:
    first = lost_of(1, 10, 0.1)

    assert 1700 < len(first) < 1900
    assert lost_of(1, 10, 0.1) == first
    assert lost_of(2, 10, 0.1) != first


def test_losses_do_not_depend_on_how_pieces_come_together() -> None:
    assert len(lost_of(3, 1, 0.05)) == len(lost_of(3, 40, 0.05))


def test_all_or_nothing_is_lost_at_the_ends_of_the_scale() -> None:
    assert len(lost_of(0, 8, 0.0)) == 2000
    assert lost_of(0, 8, 1.0) == []


def test_a_part_is_a_packet_of_its_own() -> None:
    whole = packet(4, flags=ACK | PSH | FIN, sequence=0xFFFFFFFF)
    middle, last = whole.part(1, 3), whole.part(3, 4)

    for part, begin, count, flags in ((middle, 1, 2, ACK), (last, 3, 1, ACK | PSH | FIN)):
        ip = part.data[OFFLOAD_BYTES : OFFLOAD_BYTES + 20]
        tcp = part.data[OFFLOAD_BYTES + 20 :]
        assert checksum(ip) == 0
        assert struct.unpack(">H", ip[2:4])[0] == HEADERS + count * MSS
        assert struct.unpack(">I", tcp[4:8])[0] == (0xFFFFFFFF + begin * MSS) % (1 << 32)
        assert tcp[13] == flags
        assert numbers(part) == list(range(begin, begin + count))
        assert (part.piece_count, part.size_bytes) == (count, count * (MSS + HEADERS))
    assert middle.data[1] == 1
    assert last.data[1] == 0


def test_a_cut_loses_what_is_under_way_in_its_direction_only() -> None:
    schedule = Schedule(2)
    schedule.paths[0, 1].delay_s = schedule.paths[1, 0].delay_s = 0.1
    schedule.send(0.0, packet())
    schedule.send(0.0, packet(source=1, target=0))
    schedule.paths[0, 1].is_cut = True
    schedule.send(0.05, packet())
    while_cut = arrivals(schedule)
    schedule.paths[0, 1].is_cut = False
    schedule.send(1.0, packet())

    assert while_cut == [(0.1, [0])]
    assert arrivals(schedule) == [(1.1, [0])]
    assert schedule.counts["cut"] == 2


def test_a_silenced_flow_is_lost_and_its_neighbour_is_not() -> None:
    schedule = Schedule(2)
    schedule.flow_of(packet(port=1).flow, schedule.paths[0, 1]).is_silenced = True
    schedule.send(0.0, packet(port=1))
    schedule.send(0.0, packet(port=2))

    assert len(arrivals(schedule)) == 1


def test_a_rejected_flow_is_answered_with_a_reset_that_its_sender_accepts() -> None:
    schedule = Schedule(2)
    sent = packet(3)
    schedule.flow_of(sent.flow, schedule.paths[0, 1]).is_rejected = True
    schedule.send(0.0, sent)
    ((_, _, reset),) = schedule.due(0.0)

    tcp = reset.data[OFFLOAD_BYTES + 20 :]
    assert (reset.target, reset.flow) == (0, reverse(sent.flow))
    assert tcp[13] == RST
    assert struct.unpack(">I", tcp[4:8])[0] == 99  # what the sender said it expects next
    assert checksum(reset.data[OFFLOAD_BYTES : OFFLOAD_BYTES + 20]) == 0
    pseudo = reset.flow[:8] + struct.pack(">BBH", 0, 6, len(tcp))
    assert checksum(pseudo + tcp) == 0


def test_resets_are_not_answered() -> None:
    assert packet(flags=RST).answer_with_reset() is None
    answer = packet(flags=SYN).answer_with_reset()
    assert answer is not None
    assert answer.data[OFFLOAD_BYTES + 33] == RST | ACK


def test_what_is_no_packet_between_hosts_is_left_alone() -> None:
    schedule = Schedule(2)
    schedule.send(0.0, packet(target=5))

    assert Packet.read(b"") is None
    assert Packet.read(bytes(OFFLOAD_BYTES) + b"\x60" + bytes(60)) is None
    assert schedule.next_at() is None
