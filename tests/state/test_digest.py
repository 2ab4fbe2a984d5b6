import os
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ringhaul.state.digest import (
    DIGEST_BYTES,
    array_digest,
    buffer_digest,
    byte_view,
    content_digest,
    layout_digest,
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

    assert array_digest(arrays["a"]).hex() == "d49ee28622f1a45019d81a729f141f22"
    assert layout_digest(arrays) == "2771947ce7a855695745e0c9d31c8a21"
    assert content_digest(arrays).hex() == "57ff306ab176c5f62932988a6140c477"


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


def test_many_threads_give_the_digest_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange((9 << 20) // 8, dtype=np.int64)
    alone = array_digest(array)
    monkeypatch.setattr("ringhaul.state.digest._THREADS", 3)

    assert array_digest(array) == alone


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_take_digests_too() -> None:
    array = np.zeros(9 << 20, np.uint8)
    before = array_digest(array)
    child = os.fork()
    if child == 0:
        os._exit(0 if array_digest(array) == before else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


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


def test_a_buffer_has_the_digest_of_the_arrays_it_is_for() -> None:
    arrays = example()
    others = {name: np.zeros_like(array) for name, array in arrays.items()}

    assert buffer_digest(others, bytearray(joined(arrays))) == content_digest(arrays)


def test_a_buffer_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="31 bytes for arrays of 32"):
        buffer_digest({"a": np.zeros(4)}, bytes(31))
