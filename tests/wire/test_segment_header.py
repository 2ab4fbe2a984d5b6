import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringhaul.errors import WireError
from ringhaul.ids import OpKey
from ringhaul.wire.segment_header import (
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    SegmentHeader,
    SegmentKind,
    WireKey,
    unpack_header,
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
DATA_KINDS = st.sampled_from([SegmentKind.REDUCE_SCATTER, SegmentKind.ALL_GATHER])
DATA = st.builds(
    SegmentHeader, DATA_KINDS, U64, U64, U32, U32, U32, U32, st.integers(1, PAYLOAD_BYTES_MAX)
)
GRANTS = st.builds(
    SegmentHeader, st.just(SegmentKind.GRANT), U64, U64, U32, U32, U32, U32, st.just(0)
)


def header(kind: SegmentKind, payload_bytes: int) -> SegmentHeader:
    return SegmentHeader(kind, 1, 2, 3, 4, 5, 6, payload_bytes)


@given(DATA | GRANTS)
def test_a_header_comes_back_as_it_was_sent(sent: SegmentHeader) -> None:
    data = sent.pack()

    assert len(data) == HEADER_BYTES == 40
    assert unpack_header(data) == sent
    assert unpack_header(memoryview(bytearray(data))) == sent


@given(
    st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES)
    | st.binary(min_size=HEADER_BYTES - 4, max_size=HEADER_BYTES - 4).map(
        lambda rest: b"rh" + bytes([rest[0] % 5, 0]) + rest
    )
)
def test_any_bytes_give_a_header_or_a_wire_error(data: bytes) -> None:
    try:
        read = unpack_header(data)
    except WireError:
        return
    assert read.pack() == data
    assert read.payload_bytes <= PAYLOAD_BYTES_MAX


@pytest.mark.parametrize("size", [0, HEADER_BYTES - 1, HEADER_BYTES + 1])
def test_another_number_of_bytes_is_no_header(size: int) -> None:
    with pytest.raises(WireError, match=f"{HEADER_BYTES} bytes, not {size}"):
        unpack_header(bytes(size))


@pytest.mark.parametrize(("offset", "value"), [(0, 0), (1, 0), (2, 5), (2, 255), (3, 1)], ids=str)
def test_a_wrong_magic_kind_or_reserved_byte_is_refused(offset: int, value: int) -> None:
    data = bytearray(header(SegmentKind.ALL_GATHER, 8).pack())
    data[offset] = value

    with pytest.raises(WireError, match="not a segment header"):
        unpack_header(data)


@pytest.mark.parametrize(
    ("kind", "payload_bytes"),
    [
        (SegmentKind.GRANT, 1),
        (SegmentKind.REDUCE_SCATTER, 0),
        (SegmentKind.ALL_GATHER, 0),
        (SegmentKind.REDUCE_SCATTER, PAYLOAD_BYTES_MAX + 1),
        (SegmentKind.ALL_GATHER, 2**32 - 1),
    ],
)
def test_a_payload_out_of_bounds_is_refused(kind: SegmentKind, payload_bytes: int) -> None:
    with pytest.raises(WireError, match=f"{payload_bytes} bytes"):
        unpack_header(header(kind, payload_bytes).pack())


def test_a_field_too_large_for_the_header_is_our_bug() -> None:
    with pytest.raises(struct.error):
        header(SegmentKind.ALL_GATHER, 2**32).pack()


def test_no_tag_is_not_the_same_as_any_tag() -> None:
    assert WireKey(OpKey(None, 7)).tag_hash == 0
    assert WireKey(OpKey("", 7)).tag_hash != 0
    assert WireKey(OpKey("a", 7)).tag_hash != WireKey(OpKey("b", 7)).tag_hash
    assert WireKey(OpKey("a", 7)).ordinal == 7
