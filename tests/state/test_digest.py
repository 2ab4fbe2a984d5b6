from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ringhaul.limits import STATE_BLOCK_BYTES
from ringhaul.state.digest import (
    DIGEST_BYTES,
    array_digest,
    block_digests,
    byte_view,
    content_digest,
    digest_of_blocks,
    layout_digest,
    layout_of,
)

Arrays = dict[str, NDArray[Any]]

DTYPES: list[Any] = [
    np.bool_, np.int8, np.uint16, np.int64, np.float16, np.float32, np.float64,
    np.complex64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, "datetime64[ns]", "S3", "U0",
]  # fmt: skip
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (3,), (2, 0, 3), (2, 3)]


def example() -> Arrays:
    return {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.arange(4, dtype=np.int64),
        "empty": np.empty((0, 3), np.float32),
        "scalar": np.array(7, dtype=np.float64),
        "half": np.arange(5).astype(ml_dtypes.bfloat16),
        "mask": np.array([True, False]),
    }


def joined(arrays: Arrays) -> bytes:
    return b"".join(bytes(byte_view(arrays[name])) for name in sorted(arrays))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_dtype_and_shape_has_a_digest(dtype: Any, shape: tuple[int, ...]) -> None:  # noqa: ANN401
    array = np.zeros(shape, dtype=dtype)

    assert len(array_digest(array)) == DIGEST_BYTES
    assert bytes(byte_view(array)) == array.tobytes()


def test_digests_stay_the_same_from_release_to_release() -> None:
    arrays = example()

    assert array_digest(arrays["a"]).hex() == "3bd2a8d881f23bc2ed35a5a53614ebd4"
    assert layout_digest(arrays) == "2771947ce7a855695745e0c9d31c8a21"
    assert content_digest(arrays).hex() == "8741fa67f6e472ae156e915bea1ec84f"


def test_the_order_of_the_entries_does_not_matter() -> None:
    arrays = example()
    reordered = dict(reversed(arrays.items()))

    assert content_digest(reordered) == content_digest(arrays)
    assert layout_digest(reordered) == layout_digest(arrays)


def swapped_order(array: NDArray[Any]) -> NDArray[Any]:
    return array.view(array.dtype.newbyteorder("S"))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.reshape(3, 2),
        lambda a: a.reshape(6),
        lambda a: a.view(np.int32),
        swapped_order,
    ],
    ids=["shape", "dimensions", "dtype", "byte order"],
)
def test_the_same_bytes_of_another_kind_have_another_digest(
    change: Callable[[NDArray[Any]], NDArray[Any]],
) -> None:
    arrays = example()
    changed = arrays | {"b": change(arrays["b"])}

    assert joined(changed) == joined(arrays)
    assert array_digest(changed["b"]) != array_digest(arrays["b"])
    assert layout_digest(changed) != layout_digest(arrays)
    assert content_digest(changed) != content_digest(arrays)


def test_bfloat16_and_float16_of_the_same_bytes_differ() -> None:
    half = np.zeros(4, np.float16)

    assert array_digest(half) != array_digest(half.view(ml_dtypes.bfloat16))


def test_another_name_makes_another_digest() -> None:
    array = np.zeros(4, np.float32)

    assert content_digest({"a": array}) != content_digest({"b": array})
    assert layout_digest({"a": array}) != layout_digest({"b": array})


def test_where_one_name_ends_and_the_next_begins_matters() -> None:
    array = np.zeros(1, np.uint8)

    assert content_digest({"ab": array, "c": array}) != content_digest({"a": array, "bc": array})
    assert layout_digest({}) != layout_digest({"": array})


def test_contents_swapped_between_two_names_make_another_digest() -> None:
    one, two = np.ones(3), np.zeros(3)

    assert content_digest({"a": one, "b": two}) != content_digest({"a": two, "b": one})


def test_the_layout_says_nothing_about_content() -> None:
    arrays = example()
    layout, content = layout_digest(arrays), content_digest(arrays)
    arrays["b"][1, 2] += 1

    assert layout_digest(arrays) == layout
    assert content_digest(arrays) != content


def test_a_name_may_be_any_string() -> None:
    array = np.zeros(1)

    assert content_digest({"\ud800": array}) != content_digest({"\ud801": array})


@given(st.integers(min_value=0), st.integers(0, 7))
def test_every_bit_counts(position: int, bit: int) -> None:
    array = np.arange(300, dtype=np.uint8)
    before = array_digest(array)
    array[position % 300] ^= 1 << bit

    assert array_digest(array) != before


def test_many_threads_give_the_digests_of_one() -> None:
    views = [byte_view(np.arange(size, dtype=np.int32)) for size in (9 << 20, 0, 1, 300_000)]

    with ThreadPoolExecutor(3) as pool:
        assert block_digests(views, pool.map) == block_digests(views)


def test_a_read_only_array_has_a_digest() -> None:
    array = np.arange(5)
    before = array_digest(array)
    array.flags.writeable = False

    assert array_digest(array) == before


def test_an_array_with_gaps_is_refused_and_not_copied() -> None:
    with pytest.raises(ValueError, match="ascontiguousarray"):
        array_digest(np.zeros((4, 4))[:, 1])


@pytest.mark.parametrize("dtype", [object, [("a", np.int8), ("b", np.int64)]], ids=str)
def test_a_dtype_without_plain_bytes_is_refused(dtype: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match="no digest"):
        layout_digest({"a": np.zeros(2, dtype=dtype)})


def test_the_digests_of_all_blocks_give_the_digest_of_the_content() -> None:
    arrays = example() | {"large": np.arange(STATE_BLOCK_BYTES, dtype=np.int16)}
    layout = layout_of(arrays)
    digests = block_digests([byte_view(arrays[entry.name]) for entry in layout.entries])

    assert len(digests) == layout.block_count * DIGEST_BYTES
    assert digest_of_blocks(layout, digests) == content_digest(arrays)


def test_a_list_of_digests_proves_itself() -> None:
    arrays = {"a": np.arange(STATE_BLOCK_BYTES, dtype=np.int16)}
    digests = bytearray(block_digests([byte_view(arrays["a"])]))
    digests[17] ^= 1

    assert digest_of_blocks(layout_of(arrays), bytes(digests)) != content_digest(arrays)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_of_another_length_is_refused(count: int) -> None:
    layout = layout_of({"a": np.zeros(2 * STATE_BLOCK_BYTES, np.uint8)})

    with pytest.raises(ValueError, match="2 blocks"):
        digest_of_blocks(layout, bytes(count * DIGEST_BYTES))


def test_which_arrays_may_differ_belongs_to_the_layout() -> None:
    arrays = example()

    assert layout_digest(arrays, {"a"}) != layout_digest(arrays)
    assert layout_digest(arrays, {"a"}) != layout_digest(arrays, {"b"})
