import json
import random
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul.limits import MANIFEST_BYTES_MAX
from ringhaul.state.manifest import explain_difference, pack_manifest

Arrays = dict[str, NDArray[Any]]


def explained(one: Arrays, other: Arrays, **apart: set[str]) -> str:
    first, second = (pack_manifest(arrays, apart.get("both", ())) for arrays in (one, other))
    return explain_difference("p", first, "q", second)


def example() -> Arrays:
    return {"w": np.zeros((2, 3), np.float32), "step": np.zeros((), np.int64)}


def test_a_shape_that_differs_is_named_with_both() -> None:
    text = explained(example(), example() | {"w": np.zeros((2, 4), np.float32)})

    assert text == "'w' is <float32[2, 3] on p and <float32[2, 4] on q"


def test_an_entry_that_one_lacks_is_named() -> None:
    more = example() | {"bias": np.zeros(3)}

    assert explained(example(), more) == "only q has 'bias' (<float64[3])"
    assert explained(more, example()) == "only p has 'bias' (<float64[3])"


def test_an_entry_that_may_differ_on_one_only_is_named() -> None:
    one, other = pack_manifest(example(), {"step"}), pack_manifest(example())

    assert "'step' is <int64[], may differ on p" in explain_difference("p", one, "q", other)


def test_of_many_differences_a_few_are_named_and_the_rest_counted() -> None:
    one = {f"w{i}": np.zeros(1) for i in range(100)}

    text = explained(one, {})
    assert "'w0'" in text
    assert "97 more" in text
    assert len(text) < 600


def test_a_manifest_of_any_state_has_a_bound_and_names_what_it_holds() -> None:
    dice = random.Random(0)
    one = {f"{i:05} {dice.randbytes(20).hex()}": np.zeros(1) for i in range(5000)}
    late = dict(one)
    late[max(one)] = np.zeros(2)
    early = dict(one)
    early[min(one)] = np.zeros(2)

    assert len(pack_manifest(one)) <= MANIFEST_BYTES_MAX
    assert "a later one differs" in explained(one, late)
    assert "'00000 " in explained(one, early)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"garbage",
        zlib.compress(b"\xff\xfe"),
        zlib.compress(b"[" * 100_000),
        zlib.compress(b'[1,2]\n{"a":1}\n["x"]\nnull'),
        zlib.compress(bytes(500 << 20)),
    ],
    ids=["empty", "garbage", "no text", "nested", "other json", "bomb"],
)
def test_whatever_a_peer_sends_is_explained(manifest: bytes) -> None:
    text = explain_difference("p", manifest, "q", pack_manifest(example()))

    assert "only q has 'step'" in text


@pytest.mark.parametrize(
    "entry",
    [["a", "\ud800"], ["\ud800", "x"], ["a", "y\n\0" * 5000]],
    ids=["value", "name", "long"],
)
def test_whatever_a_peer_sends_makes_a_text_that_can_be_sent(entry: list[str]) -> None:
    hostile = zlib.compress(json.dumps(entry).encode())
    other = zlib.compress(json.dumps([entry[0], "z"]).encode())

    for theirs in (b"", other):
        text = explain_difference("p", hostile, "q", theirs)

        assert text.encode().isascii()
        assert text.isprintable()
        assert len(text) < 300
