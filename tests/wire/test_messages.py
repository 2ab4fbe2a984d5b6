"""Messages of every kind, made from the readers' own bounds: round trips and garbage."""

import dataclasses
import enum
import random
import types
from collections.abc import Callable
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ringhaul.errors import WireError
from ringhaul.ids import Generation, OpKey, ReduceOp
from ringhaul.limits import FRAME_BYTES_MAX, PROTOCOL_VERSION, TAG_LENGTH_MAX
from ringhaul.wire.codec import Envelope, decode, encode
from ringhaul.wire.coordinator_messages import Began, Finished
from ringhaul.wire.fields import UINT_MAX
from ringhaul.wire.message import MESSAGES, Message
from ringhaul.wire.records import Address, CollectiveKind, Signature, addresses
from ringhaul.wire.session_messages import Hello, Refused, Resumed

Reader = Callable[[object], Any]

ALPHABET = "aZ0-_ .é漢😀"
MUTANTS = 10_000
MADE_PER_CLASS = 50


class Maker:
    """Makes valid values from a field's type; its reader, asked, tells the bounds."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice

    def envelope(self, kind: type[Message]) -> Envelope:
        return Envelope(
            message=self.record(kind),
            run_id=self.dice.randbytes(16),
            incarnation=self.integer(UINT_MAX),
            seq=self.integer(UINT_MAX),
            ack=self.integer(UINT_MAX),
        )

    def record(self, kind: type[Any]) -> Any:  # noqa: ANN401 - an instance of `kind`
        hints = get_type_hints(kind, include_extras=True)
        for _ in range(10_000):
            fields = {f.name: self.field(hints[f.name], f.name) for f in dataclasses.fields(kind)}
            made = kind(**fields)
            if getattr(made, "problem", lambda: None)() is None:
                return made
        raise AssertionError(f"no valid {kind.__name__} was made")

    def field(self, hint: Any, name: str) -> Any:  # noqa: ANN401
        if name == "version":
            return PROTOCOL_VERSION
        kind, reader = get_args(hint)[:2]
        return self.value(kind, reader)

    def value(self, kind: Any, reader: Reader) -> Any:  # noqa: ANN401
        kind = getattr(kind, "__supertype__", kind)
        if isinstance(kind, types.UnionType) or get_origin(kind) is Union:  # of a NewType
            inner = next(part for part in get_args(kind) if part is not types.NoneType)
            return None if self.dice.random() < 0.4 else self.value(inner, reader)
        if get_origin(kind) is tuple:
            return self.items(get_args(kind)[0])
        if kind is OpKey:
            return OpKey(
                self.dice.choice([None, "", "t" * TAG_LENGTH_MAX]), self.integer(2**32 - 1)
            )
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            return self.record(kind)
        if issubclass(kind, enum.Enum):
            return self.dice.choice(list(kind))
        return self.scalar(kind, reader)

    def items(self, kind: Any) -> tuple[Any, ...]:  # noqa: ANN401
        count = self.dice.choice([0, 1, 1, 2, 3])
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            return tuple(self.record(kind) for _ in range(count))
        return tuple(self.dice.sample(["a", "b", "peer-é", "d" * 80], count))

    def scalar(self, kind: type, reader: Reader) -> Any:  # noqa: ANN401
        if kind is bool:
            return self.dice.random() < 0.5
        if kind is int:
            return self.integer(largest(reader, lambda number: number, UINT_MAX))
        if kind is float:
            return self.dice.choice([0.0, 1e-9, 0.25, 1e7])
        if kind is str:
            length = self.integer(largest(reader, lambda length: "x" * length, 1 << 14))
            made = "".join(self.dice.choices(ALPHABET, k=length))
            return made or ("" if accepts(reader, "") else "x")
        assert kind is bytes, kind
        return self.dice.randbytes(16)

    def integer(self, maximum: int) -> int:
        return self.dice.choice([0, 1, maximum - 1, maximum, self.dice.randint(0, maximum)])


def accepts(reader: Reader, value: object) -> bool:
    try:
        reader(value)
    except WireError:
        return False
    return True


def largest(reader: Reader, make: Callable[[int], object], ceiling: int) -> int:
    """The greatest number whose value the reader takes, found by halving."""
    low, high = 1, ceiling
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if accepts(reader, make(middle)) else (low, middle - 1)
    return low


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
                top = largest(reader, lambda number: number, UINT_MAX)
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


def random_value(dice: random.Random) -> object:
    nested: list[object] = []
    for _ in range(dice.randint(0, 400)):
        nested = [nested]
    return dice.choice([
        None, True, 0, 1, -1, 2**31, 2**63, 2**64 - 1, 0.5, -0.0, float("nan"), float("inf"),
        "", "x" * 2000, "\x00\n", b"", dice.randbytes(16), dice.randbytes(17), [], [[]], nested,
        ["a", "a"], [None, 0], [None, 2**32], ["t", -1], {}, {"a": 1}, ["host", 70000],
        [["host", 1]] * 17, "committed", "timeout", dice.randint(0, 50), ["a"] * 1025,
        msgpack.ExtType(5, b""), msgpack.Timestamp(1),
    ])  # fmt: skip


def replace_somewhere(value: Any, dice: random.Random) -> Any:  # noqa: ANN401
    """Put a random value in place of one field, at any depth."""
    if isinstance(value, list) and value and dice.random() < 0.8:
        index = dice.randrange(len(value))
        return [*value[:index], replace_somewhere(value[index], dice), *value[index + 1 :]]
    return random_value(dice)


def mutant(data: bytes, dice: random.Random) -> bytes:
    match dice.choice(["flip", "truncate", "extend", "replace", "replace", "insert"]):
        case "flip":
            changed = bytearray(data)
            for _ in range(dice.randint(1, 4)):
                changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
            return bytes(changed)
        case "truncate":
            return data[: dice.randrange(len(data))]
        case "extend":
            return data + dice.randbytes(dice.randint(1, 9))
        case "insert":
            at = dice.randrange(len(data))
            return data[:at] + dice.randbytes(dice.randint(1, 3)) + data[at:]
        case _:
            packed: bytes = msgpack.packb(replace_somewhere(msgpack.unpackb(data), dice))
            return packed


def test_ten_thousand_mutants_give_a_message_or_a_wire_error() -> None:
    dice = random.Random(20_250)
    maker = Maker(dice)
    kinds = list(MESSAGES.values())
    originals = [encode(maker.envelope(kind)) for kind in kinds for _ in range(4)]
    read = sum(decodes_or_refuses(mutant(dice.choice(originals), dice)) for _ in range(MUTANTS))

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


@pytest.mark.parametrize("name", ["Resume", "StreamHello", "StateRequest"])
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
        decode(msgpack.packb([Resumed.KIND, bytes(size), 0, 0, 0]))
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
