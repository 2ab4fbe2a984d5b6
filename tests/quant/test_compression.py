"""`+zstd`: only where it pays, and harmless whatever arrives."""

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ringhaul.errors import WireError
from ringhaul.quant.base import Bytes
from ringhaul.quant.compression import Compressor


def compressible(size: int = 100_000) -> Bytes:
    return np.random.default_rng(0).integers(0, 4, size).astype(np.uint8)


def noise(size: int = 100_000) -> Bytes:
    return np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)


def pack(compressor: Compressor, plain: Bytes, word_bytes: int = 1) -> Bytes:
    out = np.empty(plain.size, np.uint8)
    out[: plain.size] = plain
    return out[: compressor.pack(out, plain.size, word_bytes)]


class SteppingClock:
    """Each look at it takes a fixed time."""

    def __init__(self, step_s: float) -> None:
        self.now = 0.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


@given(plain=st.binary(min_size=4, max_size=3000), word_bytes=st.sampled_from([1, 2, 4]))
def test_what_is_packed_comes_back(plain: bytes, word_bytes: int) -> None:
    data = np.frombuffer(plain[: len(plain) // 4 * 4] * 3, np.uint8)
    compressor = Compressor()

    packed = pack(compressor, data, word_bytes)

    assert packed.size <= data.size
    assert (compressor.unpack(packed, data.size, word_bytes) == data).all()


def test_what_can_be_compressed_is() -> None:
    compressor = Compressor()

    assert pack(compressor, compressible()).size < 40_000
    assert compressor.plain_bytes == 100_000
    assert compressor.packed_bytes < 40_000


def test_words_are_sorted_by_significance() -> None:
    values = np.random.default_rng(0).standard_normal(300_000).astype(np.float32).view(np.uint8)

    assert pack(Compressor(), values, 4).size < 0.95 * pack(Compressor(), values, 1).size


def test_noise_goes_as_it_is_and_is_tried_ever_less_often() -> None:
    clock = SteppingClock(1e-3)
    compressor = Compressor(clock)
    compressor.link_bytes_per_s = 1e6
    for _ in range(1000):
        assert pack(compressor, noise(1000)).size == 1000

    assert clock.now < 0.06  # two looks an attempt, no more than thirty attempts


def test_compression_that_takes_longer_than_it_saves_is_not_used() -> None:
    slow = Compressor(SteppingClock(0.1))
    slow.link_bytes_per_s = 10e6  # 60 kB saved are 6 ms
    fast = Compressor(SteppingClock(0.001))
    fast.link_bytes_per_s = 10e6

    assert pack(slow, compressible()).size == 100_000
    assert pack(fast, compressible()).size < 40_000


def test_an_attempt_that_pays_ends_the_waiting() -> None:
    compressor = Compressor()
    for _ in range(200):
        pack(compressor, noise(100))
    sizes = [pack(compressor, compressible()).size for _ in range(70)]

    first = next(i for i, size in enumerate(sizes) if size < 50_000)
    assert all(size < 50_000 for size in sizes[first:])


def test_the_waiting_begins_anew_after_an_attempt_that_paid() -> None:
    compressor = Compressor()
    for _ in range(200):
        pack(compressor, noise(100))
    while pack(compressor, compressible()).size > 50_000:
        pass
    pack(compressor, noise(100))

    sizes = [pack(compressor, compressible()).size for _ in range(2)]

    assert sizes[0] > 50_000 > sizes[1]


class CountedClock(SteppingClock):
    """Counts how often it was looked at."""

    looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return super().__call__()


def test_after_a_vain_attempt_a_sample_decides_whether_to_try_the_whole() -> None:
    """Two looks at the clock an attempt, of the sample or of the whole."""
    clock = CountedClock(1e-4)
    compressor = Compressor(clock)
    compressor.link_bytes_per_s = 100e6
    large = noise(1 << 20)
    pack(compressor, large)
    pack(compressor, large)
    assert clock.looks == 2  # the second waits
    pack(compressor, large)
    assert clock.looks == 4  # the sample alone
    mixed = noise(1 << 20)
    mixed[1 << 19 : (1 << 19) + (1 << 16)] = 0  # where the sample is taken
    while clock.looks == 4:
        packed = pack(compressor, mixed)
    assert clock.looks == 8
    assert packed.size < mixed.size
    pack(compressor, mixed)
    assert clock.looks == 10  # it pays: no sample any more


# -- Hostile bytes ----------------------------------------------------------------------------


@given(data=st.binary(max_size=200), size=st.integers(1, 300))
def test_any_bytes_are_a_segment_or_a_wire_error(data: bytes, size: int) -> None:
    payload = np.frombuffer(data, np.uint8)
    try:
        found = Compressor().unpack(payload, size, 1)
    except WireError:
        return

    assert found.size == size


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.integers(0, 40))
def test_a_damaged_frame_is_a_segment_or_a_wire_error(at: int, bit: int, cut: int) -> None:
    packed = pack(Compressor(), compressible(2000)).copy()
    packed[at % packed.size] ^= 1 << bit
    payload = packed[: packed.size - cut]
    try:
        found = Compressor().unpack(payload, 2000, 1)
    except WireError:
        return

    assert found.size == 2000


def framed(data: bytes, **options: bool) -> Bytes:
    return np.frombuffer(
        zstandard.ZstdCompressor(**options).compress(data),  # type: ignore[arg-type]
        np.uint8,
    )


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    bomb = framed(bytes(64 << 20))
    assert bomb.size < 10_000

    with pytest.raises(WireError, match="67108864 bytes instead of 20000"):
        Compressor().unpack(bomb, 20_000, 1)


def test_a_frame_that_does_not_name_its_size_is_refused() -> None:
    with pytest.raises(WireError):
        Compressor().unpack(framed(bytes(1000), write_content_size=False), 1000, 1)


def test_what_follows_a_frame_is_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(1000))
    for extra in (b"x", frame):
        payload = np.frombuffer(frame + extra, np.uint8)
        with pytest.raises(WireError):
            Compressor().unpack(payload, 1000, 1)


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(b"ab" * 300))
    honest = zstandard.get_frame_parameters(bytes(frame)).content_size
    assert honest == 600
    place = bytes(frame).index((600 - 256).to_bytes(2, "little"))
    for lie in (599, 601, 5000):
        frame[place : place + 2] = (lie - 256).to_bytes(2, "little")
        with pytest.raises(WireError):
            Compressor().unpack(np.frombuffer(bytes(frame), np.uint8), lie, 1)


@pytest.mark.parametrize("size", [1001, 4096])
def test_a_segment_longer_than_the_plain_one_is_refused(size: int) -> None:
    with pytest.raises(WireError, match=f"{size} bytes instead of 1000"):
        Compressor().unpack(np.zeros(size, np.uint8), 1000, 1)


def test_an_empty_segment_is_refused() -> None:
    with pytest.raises(WireError):
        Compressor().unpack(np.zeros(0, np.uint8), 1000, 1)
