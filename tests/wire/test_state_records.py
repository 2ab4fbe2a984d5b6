import random

import pytest

from ringhaul.errors import WireError
from ringhaul.wire.state_records import RECORD_BYTES, Kind, Packing, StateRecord


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("packing", list(Packing))
@pytest.mark.parametrize(("index", "count"), [(0, 0), (1, 2), (2**62 - 1, 2**32 - 1)])
def test_every_record_comes_back_as_it_was_sent(
    kind: Kind, packing: Packing, index: int, count: int
) -> None:
    record = StateRecord(kind, index, count, packing)

    data = record.encode()
    assert len(data) == RECORD_BYTES
    assert StateRecord.decode(data) == record


def test_garbage_is_a_wire_error_or_a_record() -> None:
    dice = random.Random(1)
    read = 0
    for _ in range(10_000):
        data = bytearray(StateRecord(dice.choice(list(Kind)), 5, 6).encode())
        for _ in range(dice.randrange(3)):
            data[dice.randrange(RECORD_BYTES)] = dice.randrange(256)
        try:
            StateRecord.decode(data)
            read += 1
        except WireError:
            continue
    assert 0 < read < 10_000


@pytest.mark.parametrize("size", [0, RECORD_BYTES - 1, RECORD_BYTES + 1])
def test_a_record_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(WireError, match="bytes"):
        StateRecord.decode(bytes(size))


def test_a_block_number_beyond_all_reason_is_refused() -> None:
    data = StateRecord(Kind.WANT, 2**62 - 1, 1).encode()

    with pytest.raises(WireError):
        StateRecord.decode(data[:-8] + b"\xff" * 8)
