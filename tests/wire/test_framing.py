from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringhaul.errors import WireError
from ringhaul.limits import FRAME_BYTES_MAX
from ringhaul.wire.framing import LENGTH_BYTES, FrameReader, frame

PAYLOADS = st.lists(st.binary(min_size=1, max_size=30), max_size=6)


@given(PAYLOADS, st.lists(st.integers(0, 220), max_size=12))
def test_frames_are_the_same_wherever_the_stream_is_split(
    payloads: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader = FrameReader()
    frames = []
    for start, end in pairwise(places):
        frames += reader.feed(stream[start:end])

    assert frames == payloads
    assert reader.pending_bytes == 0


def test_a_stream_may_come_byte_by_byte() -> None:
    reader = FrameReader()
    stream = frame(b"one") + frame(b"two")

    frames = [got for byte in stream for got in reader.feed(bytes([byte]))]

    assert frames == [b"one", b"two"]


def test_the_longest_frame_is_read() -> None:
    payload = bytes(FRAME_BYTES_MAX)

    assert FrameReader().feed(frame(payload)) == [payload]


@pytest.mark.parametrize("length", [0, FRAME_BYTES_MAX + 1, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_before_its_payload_comes(length: int) -> None:
    with pytest.raises(WireError, match=f"frame of {length} bytes"):
        FrameReader().feed(length.to_bytes(LENGTH_BYTES, "big"))


def test_after_a_bad_length_everything_is_refused_and_nothing_kept() -> None:
    reader = FrameReader()
    with pytest.raises(WireError):
        reader.feed(frame(b"good") + bytes(LENGTH_BYTES))

    with pytest.raises(WireError, match="frame of 0 bytes"):
        reader.feed(frame(b"good again"))
    assert reader.pending_bytes == 0


def test_no_more_than_one_incomplete_frame_is_kept() -> None:
    reader = FrameReader()
    start = FRAME_BYTES_MAX.to_bytes(LENGTH_BYTES, "big")
    reader.feed(frame(b"x" * 1000) * 50 + start + b"abc")

    assert reader.pending_bytes == LENGTH_BYTES + 3


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_any_bytes_give_frames_or_a_wire_error(pieces: list[bytes]) -> None:
    reader = FrameReader()
    try:
        for piece in pieces:
            reader.feed(piece)
            assert reader.pending_bytes < LENGTH_BYTES + FRAME_BYTES_MAX
    except WireError:
        assert reader.pending_bytes == 0
