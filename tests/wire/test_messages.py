"""Messages of every kind, made from the readers' own bounds: round trips and garbage."""

import dataclasses
import random
from typing import Any, NamedTuple, get_args, get_type_hints

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ringhaul.errors import WireError
from ringhaul.ids import Generation, OpKey, ReduceOp
from ringhaul.limits import FRAME_BYTES_MAX, PROTOCOL_VERSION
from ringhaul.testing.fuzz.makers import Maker, largest_number
from ringhaul.testing.fuzz.mutants import mutated_message
from ringhaul.wire.codec import Envelope, decode, encode
from ringhaul.wire.coordinator_messages import Began, Finished
from ringhaul.wire.message import MESSAGES, Message
from ringhaul.wire.records import Address, CollectiveKind, Signature, addresses
from ringhaul.wire.session_messages import Hello, Refused, Resumed

MUTANTS = 10_000
MADE_PER_CLASS = 50


def decodes_or_refuses(data: bytes) -> bool:
    """Decode whatever it is; only `WireError` may come out. True if it was a message."""
    try:
        envelope = decode(data)
    except WireError:
        return False
    assert isinstance(envelope, Envelope)
    # A duration may come as an integer and leaves as a float: then bytes differ, values do not.
    assert decode(encode(envelope)) == envelope
    return True


ALL = [pytest.param(kind, id=kind.__name__) for kind in MESSAGES.values()]


@pytest.mark.parametrize("kind", ALL)
def test_every_message_comes_back_as_it_was_sent(kind: type[Message]) -> None:
    maker = Maker(random.Random(kind.KIND))
    for _ in range(MADE_PER_CLASS):
        envelope = maker.envelope(kind)

        assert decode(encode(envelope)) == envelope


@pytest.mark.parametrize("kind", ALL)
def test_a_message_with_a_field_more_or_less_is_refused(kind: type[Message]) -> None:
    values = msgpack.unpackb(encode(Maker(random.Random(1)).envelope(kind)))

    with pytest.raises(WireError):
        decode(msgpack.packb(values[:-1]))
    with pytest.raises(WireError, match=f"{kind.__name__} has"):
        decode(msgpack.packb([*values, 0]))


def integer_fields() -> list[Any]:
    """Each integer field of each message, with the greatest number its reader takes."""
    found: list[Any] = []
    for kind in MESSAGES.values():
        hints = get_type_hints(kind, include_extras=True)
        assert dataclasses.is_dataclass(kind)
        for index, field in enumerate(dataclasses.fields(kind)):
            inner, reader = get_args(hints[field.name])[:2]
            if getattr(inner, "__supertype__", inner) is int and field.name != "version":
                top = largest_number(reader)
                found.append(pytest.param(kind, index, top, id=f"{kind.__name__}.{field.name}"))
    return found


@pytest.mark.parametrize(("kind", "index", "top"), integer_fields())
@pytest.mark.parametrize("wrong", ["low", "high", "boolean", "float", "text"])
def test_a_number_out_of_its_bounds_is_refused(
    kind: type[Message], index: int, top: int, wrong: str
) -> None:
    values = msgpack.unpackb(encode(Maker(random.Random(2)).envelope(kind)))
    bad = {"low": -1, "high": top + 1, "boolean": True, "float": 1.0, "text": "1"}
    values[5 + index] = bad[wrong]

    with pytest.raises(WireError, match=kind.__name__):
        decode(msgpack.packb(values))


def test_ten_thousand_mutants_give_a_message_or_a_wire_error() -> None:
    dice = random.Random(20_250)
    maker = Maker(dice)
    kinds = list(MESSAGES.values())
    originals = [encode(maker.envelope(kind)) for kind in kinds for _ in range(4)]
    read = sum(
        decodes_or_refuses(mutated_message(dice.choice(originals), dice)) for _ in range(MUTANTS)
    )

    assert MUTANTS // 50 < read < MUTANTS // 2  # both ends of `decode` were reached


@given(st.binary(max_size=400))
@example(b"")
@example(b"\xdd\xff\xff\xff\xff")  # a list of 2**32 - 1, and no more bytes
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc1")
def test_any_bytes_give_a_message_or_a_wire_error(data: bytes) -> None:
    decodes_or_refuses(data)


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(
    st.sampled_from(sorted(MESSAGES)),
    st.lists(JSON_LIKE, max_size=9),
)
def test_any_values_give_a_message_or_a_wire_error(kind: int, fields: list[object]) -> None:
    decodes_or_refuses(msgpack.packb([kind, bytes(16), 0, 0, 0, *fields]))


class Place(NamedTuple):
    name: str
    before: bytes
    after: bytes


PLACES = [
    Place("kind", b"\x95", b"\x00" * 4),
    Place("run id", b"\x95\x04", b"\x00" * 3),
    Place("ack", b"\x95\x04\xc4\x10" + bytes(18), b""),
    Place("field", b"\x97\x05\xc4\x10" + bytes(19), b"\xc2"),
]


@pytest.mark.parametrize("depth", [10, 900, 1000, 1020, 1024, 5000])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1k"], ids=["list", "map"])
def test_a_value_nested_however_deep_is_refused(depth: int, place: Place, opening: bytes) -> None:
    with pytest.raises(WireError):
        decode(place.before + opening * depth + b"\x90" + place.after)


def test_a_refusal_is_short_whatever_was_sent() -> None:
    for huge in ("x" * 500_000, b"x" * 500_000, ["x"] * 100_000, {"k" * 100_000: 1}):
        with pytest.raises(WireError) as caught:
            decode(msgpack.packb([huge, bytes(16), 0, 0, 0]))

        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1, 2**40])
def test_another_version_is_refused_with_both_named(version: int) -> None:
    strange = msgpack.packb([Hello.KIND, bytes(16), 0, 0, 0, version, "fields", "of", "tomorrow"])

    with pytest.raises(WireError, match=rf"version {version} .* speaks {PROTOCOL_VERSION}\b"):
        decode(strange)


@pytest.mark.parametrize("name", ["Resume", "StreamHello", "StateRequest", "StatusRequest"])
def test_every_opening_message_checks_the_version_first(name: str) -> None:
    (kind,) = (kind for kind, cls in MESSAGES.items() if cls.__name__ == name)

    with pytest.raises(WireError, match="version 99"):
        decode(msgpack.packb([kind, bytes(16), 0, 0, 0, 99]))


def test_a_message_longer_than_a_frame_is_not_encoded() -> None:
    with pytest.raises(WireError, match="too long"):
        encode(Envelope(message=Refused(reason="x" * FRAME_BYTES_MAX)))


def test_text_that_is_not_unicode_is_not_encoded() -> None:
    with pytest.raises(WireError, match="surrogates"):
        encode(Envelope(message=Refused(reason="\ud800")))


@pytest.mark.parametrize("size", [0, 15, 17])
def test_a_run_id_and_a_digest_have_16_bytes(size: int) -> None:
    with pytest.raises(WireError, match="16 bytes"):
        decode(msgpack.packb([Resumed.KIND, bytes(size), 0, 0, 0, False]))
    with pytest.raises(WireError, match="digest: not 16 bytes"):
        decode(msgpack.packb([Finished.KIND, bytes(16), 0, 0, 0, 1, [None, 0], bytes(size)]))


def test_addresses_are_bounded_in_number() -> None:
    assert len(addresses([["h", 1]] * 16)) == 16
    with pytest.raises(WireError, match="at most 16"):
        addresses([["h", 1]] * 17)


def test_an_address_reads_as_users_write_it() -> None:
    assert str(Address("10.0.0.1", 4000)) == "10.0.0.1:4000"
    assert str(Address("::1", 4000)) == "[::1]:4000"


@pytest.mark.parametrize("wrong", [True, 1.0, [1], {"a": 1}, None, "1"])
def test_what_is_looked_up_is_as_strict_as_what_is_read(wrong: object) -> None:
    signature = Signature(
        kind=CollectiveKind.ALL_REDUCE, op=ReduceOp.SUM, dtype="float32", element_count=1
    )
    began = Began(generation=Generation(1), key=OpKey(None, 0), call_index=0, signature=signature)
    values = msgpack.unpackb(encode(Envelope(message=began)))
    decoded = [decode(msgpack.packb(values)) for _ in range(2)]
    fields = next(value for value in values if type(value) is list and "float32" in value)
    fields[fields.index(1)] = wrong

    assert [envelope.message for envelope in decoded] == [began, began]
    with pytest.raises(WireError, match="element_count"):
        decode(msgpack.packb(values))
