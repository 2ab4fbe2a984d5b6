"""What is compared, and how the elected content gets into the caller's arrays."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul.limits import STATE_BLOCK_BYTES
from ringhaul.state.content import HashedState, Stage, own_stage

Arrays = dict[str, NDArray[Any]]
COUNT = 3 * STATE_BLOCK_BYTES // 4 + 5

DTYPES: list[Any] = [
    np.bool_, np.int8, np.uint16, np.int64, np.float16, np.float32, np.float64, np.complex128,
    ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, "datetime64[ns]", "S3",
]  # fmt: skip


def example() -> Arrays:
    return {
        "b": np.arange(COUNT, dtype=np.float32),
        "a": np.arange(5, dtype=np.int64),
        "empty": np.empty((0, 3), np.float32),
        "scalar": np.array(7, dtype=np.float64),
    }


def stage_of(mine: Arrays, elected: Arrays) -> tuple[Stage, HashedState]:
    source = HashedState(elected)
    return Stage(HashedState(mine), source.block_digests, source.digest), source


def test_only_blocks_that_differ_are_needed() -> None:
    mine, elected = example(), example()
    elected["b"][-1] = -1
    elected["scalar"][...] = 8
    stage, _ = stage_of(mine, elected)

    assert stage.needed == [4, 5]
    assert stage.needed_bytes == 5 * 4 + 8
    assert [stage.is_here(index) for index in range(6)] == [True] * 4 + [False] * 2


def test_the_arrays_are_untouched_until_all_is_published() -> None:
    mine, elected = example(), example()
    elected["b"] += 1
    stage, source = stage_of(mine, elected)

    for index in stage.needed:
        assert not stage.is_whole
        assert stage.accept(index, source.block(index))
        np.testing.assert_array_equal(mine["b"], example()["b"])
    assert stage.is_whole
    stage.publish()

    for name, array in elected.items():
        np.testing.assert_array_equal(mine[name], array)


@pytest.mark.parametrize("direct", [True, False])
def test_a_block_that_is_not_the_elected_one_is_refused(direct: bool) -> None:
    mine, elected = example(), example()
    elected["a"][0] = 99
    stage, source = stage_of(mine, elected)
    wrong = bytearray(source.block(0))
    wrong[-1] ^= 1
    if direct:
        stage.slot(0)[:] = wrong

    assert not stage.accept(0, None if direct else memoryview(wrong))
    assert not stage.is_here(0)
    assert not stage.accept(0, b"short")
    assert stage.accept(0, source.block(0))
    assert bytes(stage.block(0)) == bytes(source.block(0))


def test_a_list_of_digests_of_another_content_is_refused() -> None:
    elected = HashedState(example())

    with pytest.raises(ValueError, match="elected"):
        Stage(HashedState(example()), bytes(len(elected.block_digests)), elected.digest)
    with pytest.raises(ValueError, match="blocks"):
        Stage(HashedState(example()), b"", elected.digest)


def test_who_holds_the_content_needs_nothing_and_serves_its_own_memory() -> None:
    arrays = example()
    stage = own_stage(HashedState(arrays))

    assert stage.is_whole
    assert stage.needed == []
    assert np.shares_memory(np.frombuffer(stage.block(0), np.uint8), arrays["a"].view(np.uint8))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_every_dtype_travels(dtype: Any, count: int) -> None:  # noqa: ANN401
    mine = {"x": np.zeros(count, dtype)}
    elected = {"x": np.frombuffer(bytes(range(1, 240)) * 200, dtype, count).copy()}
    stage, source = stage_of(mine, elected)
    for index in stage.needed:
        assert stage.accept(index, bytes(source.block(index)))
    stage.publish()

    assert mine["x"].tobytes() == elected["x"].tobytes()


@pytest.mark.parametrize(("dtype", "words"), [("f4", 4), ("c16", 1), ("S3", 1), ("?", 1)])
def test_bytes_are_shuffled_by_words_that_divide_a_block(dtype: str, words: int) -> None:
    assert HashedState({"x": np.zeros(10, dtype)}).layout.word_bytes(0) == words
