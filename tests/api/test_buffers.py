"""Every kind of array that a caller may pass: seen without a copy, or refused in words."""

import array as stdlib
import ctypes
import mmap
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ringhaul import Communicator, connect
from ringhaul.arrays import flat_view, in_kind_of
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver, gather

torch = pytest.importorskip("torch")

Ring = Sequence[Driver[Communicator]]


@pytest.fixture(scope="module")
def pair() -> Iterator[Ring]:
    with Cluster(lambda address: connect(address, min_world_size=2)) as cluster:
        yield cluster.drivers(2)


class DLPackOnly:
    """What another library's array is to us."""

    def __init__(self, tensor: Any, device: int = 1) -> None:  # noqa: ANN401
        self._tensor = tensor
        self._device = device

    def __dlpack__(self, **options: Any) -> Any:  # noqa: ANN401
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device, 0


def reduced(value: Any) -> list[float]:  # noqa: ANN401
    if isinstance(value, DLPackOnly):
        value = value._tensor
    if isinstance(value, torch.Tensor):
        return [float(x) for x in value.flatten().tolist()]
    return [float(x) for x in np.asarray(memoryview(value)).ravel().tolist()]


def mapped() -> mmap.mmap:
    memory = mmap.mmap(-1, 6)
    memory.write(bytes([1, 2, 3, 4, 5, 6]))
    return memory


KINDS: dict[str, Callable[[], Any]] = {
    "torch float32": lambda: torch.arange(1, 7, dtype=torch.float32),
    "torch bfloat16": lambda: torch.arange(1, 7, dtype=torch.bfloat16),
    "torch float16": lambda: torch.arange(1, 7, dtype=torch.float16),
    "torch int64": lambda: torch.arange(1, 7),
    "torch uint8": lambda: torch.arange(1, 7, dtype=torch.uint8),
    "torch matrix": lambda: torch.arange(1.0, 7.0).reshape(2, 3),
    "torch bfloat16 part": lambda: torch.arange(9, dtype=torch.bfloat16)[1:7],
    "torch scalar parameter's grad": lambda: torch.arange(1.0, 7.0, requires_grad=True).detach(),
    "DLPack": lambda: DLPackOnly(torch.arange(1.0, 7.0)),
    "array.array of floats": lambda: stdlib.array("f", [1, 2, 3, 4, 5, 6]),
    "array.array of longs": lambda: stdlib.array("q", [1, 2, 3, 4, 5, 6]),
    "bytearray": lambda: bytearray([1, 2, 3, 4, 5, 6]),
    "memoryview of bytes": lambda: memoryview(bytearray([1, 2, 3, 4, 5, 6])),
    "memoryview of doubles": lambda: np.arange(1.0, 7.0).data,
    "memoryview of two dimensions": lambda: np.arange(1.0, 7.0).reshape(3, 2).data,
    "ctypes": lambda: (ctypes.c_double * 6)(1, 2, 3, 4, 5, 6),
    "mmap": mapped,
}


@pytest.mark.parametrize("made", KINDS.values(), ids=KINDS)
def test_each_kind_is_reduced_in_place(pair: Ring, made: Callable[[], Any]) -> None:
    values = [made(), made()]

    def call(value: Any) -> Callable[[Communicator], object]:  # noqa: ANN401
        return lambda comm: comm.all_reduce(value, timeout_s=PATIENCE_S)

    gather([d.begin(call(value)) for d, value in zip(pair, values, strict=True)])

    for value in values:
        assert reduced(value) == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]


@pytest.mark.parametrize("made", KINDS.values(), ids=KINDS)
def test_each_kind_is_reduced_asynchronously_many_at_a_time_and_into_out(
    pair: Ring, made: Callable[[], Any]
) -> None:
    def act(comm: Communicator) -> list[list[float]]:
        first, second, third, fourth, out = (made() for _ in range(5))
        work = comm.all_reduce_async(first)
        comm.all_reduce_many([second, third], timeout_s=PATIENCE_S)
        comm.all_reduce(fourth, out=out, timeout_s=PATIENCE_S)
        work.wait(PATIENCE_S)
        return [reduced(each) for each in (first, second, third, fourth, out)]

    done = [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    same = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    calls = [driver.begin(act) for driver in pair]
    assert gather(calls) == [[done, done, done, same, done]] * 2


def test_kinds_may_differ_between_members_and_between_array_and_out(pair: Ring) -> None:
    tensor, array = torch.ones(5, dtype=torch.bfloat16), np.ones(5, ml_dtypes.bfloat16)
    out = torch.empty(5, dtype=torch.bfloat16)

    calls = [
        pair[0].begin(lambda comm: comm.all_reduce(tensor)),
        pair[1].begin(lambda comm: comm.all_reduce(array, out=out)),
    ]
    gather(calls)

    assert tensor.tolist() == out.tolist() == [2.0] * 5
    assert array.astype(float).tolist() == [1.0] * 5


def test_read_only_bytes_are_an_input_but_not_in_place(pair: Ring) -> None:
    outs = [bytearray(3), bytearray(3)]

    def call(out: bytearray) -> Callable[[Communicator], object]:
        return lambda comm: comm.all_reduce(b"\x01\x02\x03", out=out)

    gather([d.begin(call(out)) for d, out in zip(pair, outs, strict=True)])

    assert outs == [bytearray([2, 4, 6])] * 2
    with pytest.raises(ValueError, match="array is read-only: pass a writable copy, or give out="):
        pair[0].do(lambda comm: comm.all_reduce(b"\x01\x02\x03"))


def test_two_tensors_of_one_storage_overlap(pair: Ring) -> None:
    base = torch.ones(10)

    with pytest.raises(ValueError, match=r"arrays\[0\] and arrays\[1\] share memory"):
        pair[0].do(lambda comm: comm.all_reduce_many([base[:6], base[5:]]))
    with pytest.raises(ValueError, match="out shares memory"):
        pair[0].do(lambda comm: comm.all_reduce(base[:5], out=base[3:8]))


@pytest.mark.parametrize("made", KINDS.values(), ids=KINDS)
def test_nothing_is_copied(made: Callable[[], Any]) -> None:
    value = made()

    flat_view(value, "array", writable=True)[0] = 7

    assert reduced(value)[0] == 7.0


def test_results_have_the_callers_kind_and_the_same_memory() -> None:
    for dtype in ("float32", "int64", "bfloat16", "float16"):
        result = np.zeros((2, 3), ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        tensor = in_kind_of(torch.ones(1), result)
        assert tensor.dtype is getattr(torch, dtype)
        assert tensor.shape == (2, 3)
        tensor[0, 0] = 5
        assert result[0, 0] == 5
    assert in_kind_of(np.ones(1), result) is result
    assert in_kind_of(bytearray(1), result) is result


REFUSALS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a tensor that requires grad": (
        lambda: torch.ones(3, requires_grad=True), ValueError, "pass .detach() of it"
    ),
    "a parameter": (lambda: torch.nn.Parameter(torch.ones(3)), ValueError, "pass .detach()"),
    "a tensor elsewhere": (lambda: torch.ones(3, device="meta"), TypeError, "a tensor on meta"),
    "a sparse tensor": (lambda: torch.ones(3).to_sparse(), TypeError, ".to_dense()"),
    "a lazy negative": (
        lambda: torch.ones(3, dtype=torch.cfloat).conj().imag, TypeError, ".resolve_neg()"
    ),
    "a transposed tensor": (lambda: torch.ones(3, 2).t(), ValueError, "tensor.contiguous()"),
    "a strided tensor": (lambda: torch.ones(6)[::2], ValueError, "not C-contiguous"),
    "an expanded tensor": (lambda: torch.ones(1).expand(3), ValueError, "not C-contiguous"),
    "a tensor of bool": (lambda: torch.ones(3, dtype=torch.bool), TypeError, "bool cannot be"),
    "a complex tensor": (lambda: torch.ones(3, dtype=torch.cfloat), TypeError, "complex64 cannot"),
    "a tensor of float8": (
        lambda: torch.ones(3).to(torch.float8_e4m3fn), TypeError, "float8_e4m3fn"
    ),
    "DLPack on a GPU": (lambda: DLPackOnly(torch.ones(3), 2), TypeError, "on a device (DLPack"),
    "DLPack of bfloat16": (
        lambda: DLPackOnly(torch.ones(3, dtype=torch.bfloat16)), TypeError, "NumPy cannot view"
    ),
    "a read-only memoryview": (lambda: memoryview(bytes(3)), ValueError, "read-only"),
    "a strided memoryview": (lambda: memoryview(bytearray(6))[::2], ValueError, "not C-contig"),
    "foreign byte order": (lambda: np.ones(3, ">i4").data, TypeError, "byte order"),
    "characters": (lambda: memoryview(bytearray(3)).cast("c"), TypeError, "cannot be reduced"),
    "wide characters": (lambda: stdlib.array("u", "abc"), TypeError, "cannot be reduced"),
    "a text": (lambda: "abc", TypeError, "has to be a NumPy array, not a str"),
    "a number": (lambda: 3.0, TypeError, "NumPy array, not a float"),
    "nothing": (lambda: None, TypeError, "NumPy array, not a NoneType"),
}  # fmt: skip


@pytest.mark.parametrize(("made", "kind", "text"), REFUSALS.values(), ids=REFUSALS)
def test_what_would_need_a_copy_is_refused_with_what_to_do(
    made: Callable[[], Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as caught:
        flat_view(made(), "array", writable=True)

    assert text in str(caught.value)


def test_the_library_does_not_import_torch() -> None:
    text = "import sys, ringhaul, ringhaul.aio; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", text], check=False).returncode == 0
