import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul import SharedState, StateError
from ringhaul.limits import STATE_BLOCK_BYTES

Arrays = dict[str, NDArray[Any]]

DTYPES: list[Any] = [
    np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64,
    np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2, np.complex64, "M8[ns]", "S3", "U2",
]  # fmt: skip


def example() -> Arrays:
    return {
        "w": np.arange(STATE_BLOCK_BYTES // 4 + 7, dtype=np.float32),
        "half": np.arange(5).astype(ml_dtypes.bfloat16).reshape(5, 1),
        "scalar": np.array(3, np.int64),
        "empty": np.empty((2, 0), np.float64),
        "odd name \U0001f600 \n": np.array([True]),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.safetensors"


def files(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


def test_what_was_saved_is_loaded(path: Path) -> None:
    state = SharedState(example(), revision=41)
    state.save(path)

    loaded = SharedState.load(path)

    assert loaded.revision == 41
    assert loaded.digest() == state.digest()
    assert files(path) == ["run.safetensors"]
    loaded.arrays["w"][0] = 5  # its own, writable


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (0,)], ids=str)
def test_every_dtype_and_shape_is_saved(
    path: Path,
    dtype: Any,  # noqa: ANN401
    shape: tuple[int, ...],
) -> None:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (b"\1\0" * size)[:size] if np.dtype(dtype).kind != "U" else b"a\0\0\0" * (size // 4)
    array = (
        np.frombuffer(raw, np.uint8).view(dtype).reshape(shape) if size else np.empty(shape, dtype)
    )
    state = SharedState({"x": array.copy()})
    state.save(path)

    assert SharedState.load(path).digest() == state.digest()


def test_a_state_without_arrays_is_saved(path: Path) -> None:
    SharedState({}, revision=2).save(path)

    assert SharedState.load(path).revision == 2


def test_a_checkpoint_is_restored_into_the_callers_arrays(path: Path) -> None:
    SharedState(example(), revision=9).save(path)
    arrays = {name: np.zeros_like(array) for name, array in example().items()}
    state = SharedState(arrays)
    state.restore(str(path))

    assert state.revision == 9
    np.testing.assert_array_equal(arrays["w"], example()["w"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"w": np.zeros(3, np.float32)}, "'w'"),
        ({"scalar": np.array(3, np.int32)}, "'scalar'"),
        ({"more": np.zeros(1)}, "only this state has 'more'"),
    ],
    ids=["shape", "dtype", "names"],
)
def test_the_checkpoint_of_another_state_is_refused_and_nothing_changes(
    path: Path, change: Arrays, named: str
) -> None:
    SharedState(example(), revision=9).save(path)
    state = SharedState(example() | change, revision=4)
    before = state.digest()

    with pytest.raises(StateError, match=named):
        state.restore(path)
    assert (state.digest(), state.revision) == (before, 4)


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    state = SharedState({"a": np.arange(20), "b": np.ones(3, np.float32)}, revision=1)
    state.save(path)
    whole = path.read_bytes()
    before = state.digest()

    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(StateError, match="not loaded"):
            state.restore(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(StateError, match="instead of"):
        SharedState.load(path)
    assert state.digest() == before


def test_a_flipped_bit_anywhere_is_noticed_or_says_the_same(path: Path) -> None:
    state = SharedState({"a": np.arange(20), "b": np.ones(3, np.float32)}, revision=1)
    state.save(path)
    whole = path.read_bytes()

    refused = 0
    for place in range(len(whole)):
        for bit in (0, 1, 4, 5, 7):
            spoilt = bytearray(whole)
            spoilt[place] ^= 1 << bit
            path.write_bytes(spoilt)
            try:
                loaded = SharedState.load(path)
            except StateError:
                refused += 1
            else:  # what nobody reads: blanks, the case of a digit, a key's name
                assert (loaded.digest(), loaded.revision) == (state.digest(), 1)
    assert refused > 4.5 * len(whole)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, this is no checkpoint",
        b"\x80\x04\x95" + bytes(100),  # a pickle
        (2**60).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        (20_000).to_bytes(8, "little") + b"[" * 20_000,
        (38).to_bytes(8, "little") + b'{"a": {"data_offsets": [0, Infinity]}}',
    ],
)
def test_a_foreign_file_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)

    with pytest.raises(StateError, match="not loaded"):
        SharedState.load(path)


def test_a_safetensors_file_of_others_says_how_to_load_it(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"x")

    with pytest.raises(StateError, match="with the safetensors package"):
        SharedState.load(path)


def test_a_missing_file_is_no_state_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SharedState.load(path)


def test_a_write_that_fails_leaves_the_old_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SharedState(example(), revision=1).save(path)
    old = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        SharedState(example(), revision=2).save(path)

    assert path.read_bytes() == old
    assert files(path) == ["run.safetensors"]


def test_the_file_is_on_the_disk_before_it_has_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        order.append("fsync")
        fsync(descriptor)

    def note_replace(source: str, target: Path) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)

    SharedState(example()).save(path)

    assert order == ["fsync", "rename", "fsync"]


def test_the_safetensors_package_reads_it(path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays: Arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1, 2], np.int64),
    }
    SharedState(arrays, revision=3).save(path)

    loaded = safetensors.load_file(path)

    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, tmp_path):
        with pytest.raises(OSError, match="no file"):
            SharedState({"w": np.ones(2)}).save(place)

    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_dtype_that_no_file_can_name_is_refused(path: Path) -> None:
    state = SharedState({"w": np.ones(2, ml_dtypes.int4)})

    with pytest.raises(ValueError, match="'w' is int4"):
        state.save(path)
    assert not path.exists()
