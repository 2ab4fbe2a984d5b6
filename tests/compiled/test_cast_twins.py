"""Compiled sums and casts of 16-bit floats give the bits of NumPy's.

Without numba (the extra "fast") these tests are skipped.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ringhaul.ids import ReduceOp
from ringhaul.ring.casts import BlockCast
from ringhaul.ring.reduce import Kernel, element_dtype
from ringhaul.ring.twins import Twin
from ringhaul.testing.twins import both

pytest.importorskip("numba")

Array = NDArray[Any]
NARROW = ("float16", "bfloat16")


@pytest.fixture(scope="module")
def twins() -> dict[str, Twin]:
    from ringhaul.compiled.table import compile_twins

    return compile_twins()


@pytest.mark.parametrize("dtype", NARROW)
def test_every_16_bit_pattern_is_widened_as_numpy_does(twins: dict[str, Twin], dtype: str) -> None:
    values = np.arange(1 << 16, dtype=np.uint16).view(element_dtype(dtype))

    def act() -> bytes:
        out = np.empty(1 << 16, np.float32)
        BlockCast(element_dtype(dtype)).widen(values, out)
        return out.tobytes()

    plain, fast = both(twins, act, f"widen_{dtype}")

    assert plain == fast == values.astype(np.float32).tobytes()


@settings(deadline=None)
@given(dtype=st.sampled_from(NARROW), seed=st.integers(0, 2**32), kind=st.integers(0, 3))
def test_floats_are_narrowed_as_numpy_does(
    twins: dict[str, Twin], dtype: str, seed: int, kind: int
) -> None:
    patterns: Array = np.random.default_rng(seed).integers(0, 2**32, 1 << 14, dtype=np.uint32)
    if kind == 1:  # ties and what is next to them
        patterns = (patterns & 0xFFFF0000) + np.uint32(0x7FFF) + patterns % 3
    elif kind == 2:  # the range of float16, its subnormals too
        patterns = (patterns & 0x87FFFFFF) | np.uint32(0x30000000)
        patterns &= np.uint32(0xFFFFF000)
    values = patterns.view(np.float32)
    if kind:
        values = np.where(np.isnan(values), np.float32(1), values)

    def act() -> bytes:
        out = np.empty(values.size, element_dtype(dtype))
        with np.errstate(all="ignore"):
            BlockCast(element_dtype(dtype)).narrow(values, out)
        return out.tobytes()

    plain, fast = both(twins, act, *((f"narrow_{dtype}",) if kind else ()))

    assert plain == fast


@pytest.mark.parametrize("op", list(ReduceOp))
@pytest.mark.parametrize("dtype", NARROW)
def test_sums_of_16_bit_floats_have_the_same_bits(
    twins: dict[str, Twin], dtype: str, op: ReduceOp
) -> None:
    kernel = Kernel(op, dtype, 3)
    rng = np.random.default_rng(0)
    own = rng.integers(0, 2**16, 70_001).astype(np.uint16).view(kernel.dtype)
    own = np.where(np.isfinite(own.astype(np.float32)), own, kernel.dtype.type(1))
    own = own.astype(kernel.dtype)
    received = (rng.standard_normal(own.size) * 1000).astype(np.float32)

    def act() -> bytes:
        total, in_place = np.empty_like(received), received.copy()
        result = np.empty_like(own)
        kernel.combine(received, own, total)
        kernel.combine(in_place, own, in_place)
        kernel.finish(received, own, result)
        assert total.tobytes() == in_place.tobytes()
        over_own = own.copy()
        kernel.finish(received, over_own, over_own)
        assert over_own.tobytes() == result.tobytes()
        return total.tobytes() + result.tobytes()

    is_sum = op in (ReduceOp.SUM, ReduceOp.AVG)
    used = [f"{action}_{dtype}" for action in ("add", "add_to", "finish")] if is_sum else []
    plain, fast = both(twins, act, *used)

    assert plain == fast


@pytest.mark.parametrize("dtype", NARROW)
def test_a_result_that_is_no_number_is_left_to_numpy(twins: dict[str, Twin], dtype: str) -> None:
    kernel = Kernel(ReduceOp.SUM, dtype, 2)
    own = np.array([1.0, np.inf, -np.inf, np.nan, 2.0], kernel.dtype)
    received = np.array([1.0, -np.inf, -np.inf, 1.0, np.nan], np.float32)

    def act() -> bytes:
        in_place = own.copy()
        kernel.finish(received, in_place, in_place)
        result = np.empty_like(own)
        kernel.finish(received, own, result)
        assert result.tobytes() == in_place.tobytes()
        return result.tobytes()

    plain, fast = both(twins, act)

    assert plain == fast
    assert np.isnan(np.frombuffer(fast, kernel.dtype)).tolist() == [False, True, False, True, True]
