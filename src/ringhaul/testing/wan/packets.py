"""What a TUN device hands over: an offload header and an IPv4 packet, up to 64 KiB of it.

With segmentation offload one such packet stands for many on the wire, here its *pieces*: few
system calls a second carry gigabits. They are lost one by one all the same: `part` cuts a
packet where pieces are missing.
"""

import struct
from dataclasses import dataclass
from typing import Self

#: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset: `struct virtio_net_hdr`.
OFFLOAD_HEADER = struct.Struct("<BBHHHH")
OFFLOAD_BYTES = OFFLOAD_HEADER.size
#: Addresses are 10.77.0.1 and so on: a host's number is its last byte less one.
SUBNET = "10.77.0."
_GSO_NONE, _GSO_TCP4 = 0, 1
_IP_BYTES = 20
_TCP = 6
_FIN, _SYN, _RST, _PSH, _ACK = 0x01, 0x02, 0x04, 0x08, 0x10
#: From the beginning of the IP header: source, target, source port, target port.
_FLOW_OFFSET, _FLOW_BYTES = 12, 12

FlowKey = bytes


@dataclass(slots=True)
class Packet:
    """What one read of a TUN device gave.

    `size_bytes` is what it takes on the wire: each piece has headers of its own. Never changed;
    not frozen, because that triples the time to make one.
    """

    data: bytes
    source: int
    target: int
    flow: FlowKey
    size_bytes: int
    piece_count: int

    @classmethod
    def read(cls, data: bytes) -> Self | None:
        """Understand a packet; None if it is none of IPv4 between two hosts."""
        if len(data) < OFFLOAD_BYTES + _FLOW_OFFSET + _FLOW_BYTES or data[OFFLOAD_BYTES] != 0x45:
            return None
        flow = data[OFFLOAD_BYTES + _FLOW_OFFSET : OFFLOAD_BYTES + _FLOW_OFFSET + _FLOW_BYTES]
        size_bytes, piece_count = len(data) - OFFLOAD_BYTES, 1
        if data[1] & _GSO_TCP4:
            header, gso = _header_bytes(data), _gso_bytes(data)
            piece_count = max(1, -(-(size_bytes - header) // gso))
            size_bytes += (piece_count - 1) * header
        return cls(data, flow[3] - 1, flow[7] - 1, flow, size_bytes, piece_count)

    def part(self, first: int, end: int) -> "Packet":
        """The pieces from `first` to before `end`, as a packet of its own."""
        if first == 0 and end == self.piece_count:
            return self
        header, gso = _header_bytes(self.data), _gso_bytes(self.data)
        body = OFFLOAD_BYTES + header
        payload = self.data[body + first * gso : body + end * gso]
        head = bytearray(self.data[:body])
        if end - first == 1:
            head[1] = _GSO_NONE
            struct.pack_into("<H", head, 4, 0)
        _set_ip_length(head, OFFLOAD_BYTES, header + len(payload))
        tcp = OFFLOAD_BYTES + _IP_BYTES
        (sequence,) = struct.unpack_from(">I", head, tcp + 4)
        struct.pack_into(">I", head, tcp + 4, (sequence + first * gso) & 0xFFFFFFFF)
        if end < self.piece_count:  # what ends a stream belongs to its last piece
            head[tcp + 13] &= ~(_FIN | _PSH)
        data = bytes(head) + payload
        size_bytes = len(payload) + (end - first) * header
        return Packet(data, self.source, self.target, self.flow, size_bytes, end - first)

    def is_tcp(self) -> bool:
        """Is it TCP, and not UDP or ICMP?"""
        return self.data[OFFLOAD_BYTES + 9] == _TCP

    def answer_with_reset(self) -> "Packet | None":
        """The reset that its sender takes for the other end's; None for a reset."""
        tcp = OFFLOAD_BYTES + _IP_BYTES
        flags = self.data[tcp + 13]
        if flags & _RST or not self.is_tcp():
            return None
        sequence, acknowledged = struct.unpack_from(">II", self.data, tcp + 4)
        if flags & _ACK:
            fields, answer = (acknowledged, 0), _RST
        else:
            fields, answer = (0, (sequence + 1) & 0xFFFFFFFF), _RST | _ACK
        flow = reverse(self.flow)
        segment = bytearray(flow[8:12] + struct.pack(">IIBBHHH", *fields, 5 << 4, answer, 0, 0, 0))
        pseudo = flow[:8] + struct.pack(">BBH", 0, _TCP, len(segment))
        struct.pack_into(">H", segment, 16, checksum(pseudo + segment))
        head = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 0, 0, 0, 64, _TCP, 0) + flow[:8])
        _set_ip_length(head, 0, _IP_BYTES + len(segment))
        data = bytes(OFFLOAD_BYTES) + bytes(head) + bytes(segment)
        return Packet(data, self.target, self.source, flow, len(data) - OFFLOAD_BYTES, 1)


def reverse(flow: FlowKey) -> FlowKey:
    """The flow of what comes back."""
    return flow[4:8] + flow[:4] + flow[10:12] + flow[8:10]


def address_of(host: int) -> str:
    """The address of host number `host`."""
    return f"{SUBNET}{host + 1}"


def checksum(data: bytes | bytearray) -> int:
    """The internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _header_bytes(data: bytes) -> int:
    """IP and TCP header together."""
    words: int = data[OFFLOAD_BYTES + _IP_BYTES + 12] >> 4
    return _IP_BYTES + words * 4


def _gso_bytes(data: bytes) -> int:
    """Payload bytes of one piece."""
    return int.from_bytes(data[4:6], "little")


def _set_ip_length(head: bytearray, at: int, length: int) -> None:
    """Write the length into the IP header at `at`, and the checksum that follows from it."""
    struct.pack_into(">H", head, at + 2, length)
    struct.pack_into(">H", head, at + 10, 0)
    struct.pack_into(">H", head, at + 10, checksum(head[at : at + _IP_BYTES]))
