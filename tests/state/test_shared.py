from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul.limits import STATE_ENTRIES_MAX
from ringhaul.state.content import Stage
from ringhaul.state.shared import SharedState

Arrays = dict[str, NDArray[Any]]


def example() -> Arrays:
    return {
        "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.empty((0, 3), np.float32),
        "scalar": np.array(7, dtype=np.float64),
        "half": np.arange(5).astype(ml_dtypes.bfloat16),
        "mask": np.array([True, False]),
    }


def read_only() -> NDArray[Any]:
    array = np.zeros(3)
    array.flags.writeable = False
    return array


def fetched(state: SharedState, source: SharedState) -> Stage:
    """What is left to publish once all that differs has been fetched."""
    elected = source.content()
    stage = Stage(state.content(), elected.block_digests, elected.digest)
    for index in stage.needed:
        assert stage.accept(index, elected.block(index))
    return stage


def test_the_arrays_are_the_callers() -> None:
    arrays = example()
    state = SharedState(arrays)
    arrays["weights"][0, 0] = 42

    assert state.arrays["weights"] is arrays["weights"]
    assert state.digest() == SharedState(arrays).digest()


def test_the_mapping_is_read_only_and_not_the_callers() -> None:
    arrays = example()
    state = SharedState(arrays)
    del arrays["mask"]

    assert list(state.arrays) == ["empty", "half", "mask", "scalar", "weights"]
    with pytest.raises(TypeError):
        state.arrays["more"] = np.zeros(1)  # type: ignore[index]
    with pytest.raises(AttributeError):
        state.arrays = {}  # type: ignore[misc]


def test_total_bytes_are_those_of_all_arrays() -> None:
    assert SharedState(example()).total_bytes == 24 + 0 + 8 + 10 + 2
    assert SharedState({}).total_bytes == 0


def test_the_layout_fits_a_signature_and_ignores_content() -> None:
    arrays = example()
    layout = SharedState(arrays).layout()
    arrays["scalar"][...] = 1

    assert len(layout) == 32
    assert SharedState(arrays, revision=4).layout() == layout


@pytest.mark.parametrize(
    ("array", "error", "advice"),
    [
        ([1.0, 2.0], TypeError, "has to be a NumPy array"),
        (np.float32(1), TypeError, "scalar"),
        (np.ma.zeros(3), TypeError, "its .data"),
        (np.array([None]), TypeError, "plain values"),
        (np.zeros(2, dtype=[("a", "i4")]), TypeError, "one array for each field"),
        (np.zeros(3, dtype=">f4"), ValueError, "newbyteorder"),
        (np.zeros((3, 3)).T[1:], ValueError, "ascontiguousarray"),
        (np.zeros(6)[::2], ValueError, "ascontiguousarray"),
        (read_only(), ValueError, r"array\.copy\(\)"),
    ],
    ids=[
        "list", "scalar", "masked", "object", "fields", "order", "transposed", "gaps", "read-only",
    ],
)  # fmt: skip
def test_what_cannot_be_updated_in_place_is_refused_by_name(
    array: Any,  # noqa: ANN401
    error: type[Exception],
    advice: str,
) -> None:
    with pytest.raises(error, match=rf"'momentum'.*{advice}"):
        SharedState({"weights": np.zeros(2), "momentum": array})


@pytest.mark.parametrize(
    ("name", "error"),
    [(1, TypeError), (None, TypeError), (b"w", TypeError), ("x" * 201, ValueError)],
)
def test_a_name_is_a_string_of_at_most_200_characters(name: Any, error: type[Exception]) -> None:  # noqa: ANN401
    with pytest.raises(error, match="name"):
        SharedState({name: np.zeros(1)})

    SharedState({"x" * 200: np.zeros(1)})


def test_the_number_of_arrays_is_bounded() -> None:
    array = np.zeros(0)
    names = [str(index) for index in range(STATE_ENTRIES_MAX + 1)]

    with pytest.raises(ValueError, match="join small ones"):
        SharedState(dict.fromkeys(names, array))


@pytest.mark.parametrize(
    ("first", "second"),
    [(slice(0, 10), slice(0, 10)), (slice(0, 6), slice(5, 10)), (slice(0, 10), slice(4, 5))],
    ids=["same", "overlap", "inside"],
)
def test_two_arrays_may_not_share_memory(first: slice, second: slice) -> None:
    whole = np.zeros(10)

    with pytest.raises(ValueError, match="'a' and 'b' share memory"):
        SharedState({"a": whole[first], "b": whole[second], "c": np.zeros(3)})


def test_overlap_is_found_also_behind_a_short_array_inside_a_long_one() -> None:
    whole = np.zeros(10)

    with pytest.raises(ValueError, match="share memory"):
        SharedState({"long": whole, "short": whole[1:2], "late": whole[8:9]})


def test_neighbours_in_one_allocation_are_apart() -> None:
    whole = np.zeros(10)

    state = SharedState({"a": whole[:4], "b": whole[4:], "none": whole[2:2]})

    assert state.total_bytes == 80


@pytest.mark.parametrize("revision", [0, 1, 2**62 - 1, np.int64(5)])
def test_a_revision_is_taken_up_to_its_bound(revision: int) -> None:
    state = SharedState({}, revision=revision)
    state.revision = revision

    assert state.revision == revision
    assert type(state.revision) is int


@pytest.mark.parametrize(
    ("revision", "error"),
    [(-1, ValueError), (2**62, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError)],
)
def test_another_revision_is_refused_and_changes_nothing(
    revision: Any,  # noqa: ANN401
    error: type[Exception],
) -> None:
    state = SharedState({}, revision=3)

    with pytest.raises(error, match="revision"):
        state.revision = revision
    with pytest.raises(error, match="revision"):
        SharedState({}, revision=revision)
    assert state.revision == 3


def test_what_was_fetched_is_published_with_its_revision() -> None:
    source = SharedState(example())
    arrays = {name: np.zeros_like(array) for name, array in example().items()}
    state = SharedState(arrays)

    state.publish(fetched(state, source), revision=9)

    assert state.digest() == source.digest()
    assert state.revision == 9
    np.testing.assert_array_equal(arrays["weights"], example()["weights"])


@pytest.mark.parametrize("revision", [-1, 2**62])
def test_a_publication_that_is_refused_changes_nothing(revision: int) -> None:
    arrays = {name: np.zeros_like(array) for name, array in example().items()}
    state = SharedState(arrays, revision=2)
    before = state.digest()

    with pytest.raises(ValueError, match="revision"):
        state.publish(fetched(state, SharedState(example())), revision)
    assert (state.digest(), state.revision) == (before, 2)


def test_an_array_that_became_read_only_refuses_the_whole_publication() -> None:
    arrays = {name: np.zeros_like(array) for name, array in example().items()}
    state = SharedState(arrays, revision=2)
    before = state.digest()
    stage = fetched(state, SharedState(example()))
    arrays["weights"].flags.writeable = False

    with pytest.raises(ValueError, match="'weights' is read-only"):
        state.publish(stage, revision=3)
    assert (state.digest(), state.revision) == (before, 2)


def test_entries_that_may_differ_are_neither_hashed_nor_published() -> None:
    source, arrays = SharedState(example()), example()
    arrays["scalar"][...] = -1
    arrays["mask"][:] = False
    state = SharedState(arrays)
    apart = {"scalar", "half"}
    elected = source.content(apart)
    stage = Stage(state.content(apart), elected.block_digests, elected.digest)

    assert [stage.layout.entries[stage.layout.span(i).entry_index].name for i in stage.needed] == [
        "mask"
    ]
    assert stage.accept(stage.needed[0], elected.block(stage.needed[0]))
    state.publish(stage, 1)
    assert arrays["mask"].any()
    assert arrays["scalar"] == -1


def test_a_tensor_is_kept_as_the_memory_that_it_is() -> None:
    torch = pytest.importorskip("torch")
    tensors = {
        "half": torch.ones(3, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(5),
    }
    state = SharedState(tensors)
    source = SharedState(
        {
            "half": np.full(3, 2, ml_dtypes.bfloat16),
            "mask": np.array([False, True]),
            "scalar": np.array(7),
        }
    )
    state.publish(fetched(state, source), 1)

    assert tensors["half"].tolist() == [2, 2, 2]
    assert tensors["mask"].tolist() == [False, True]
    assert tensors["scalar"].item() == 7


def test_a_parameter_says_to_detach_it() -> None:
    torch = pytest.importorskip("torch")

    with pytest.raises(ValueError, match=r"'w'.*detach"):
        SharedState({"w": torch.zeros(2, requires_grad=True)})


def test_a_buffer_is_an_array() -> None:
    data = bytearray(b"abc")

    assert SharedState({"a": data}).arrays["a"].tolist() == [97, 98, 99]
    with pytest.raises(ValueError, match="read-only"):
        SharedState({"a": b"abc"})
