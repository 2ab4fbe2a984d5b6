"""The error meter: exact at any magnitude."""

import numpy as np
import pytest

from ringhaul.quant import ErrorMeter


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1.0, 1e20, 1e37])
@pytest.mark.parametrize("divisor", [1, 3])
def test_largest_and_rms_of_several_batches(dtype: str, scale: float, divisor: int) -> None:
    meter = ErrorMeter()
    for batch in ([3.0, -4.0], [0.0], [-2.0, 1.0]):
        meter.add((np.array(batch) * scale).astype(dtype), divisor)

    assert meter.largest == pytest.approx(4 * scale / divisor, rel=1e-4, abs=0)
    assert meter.rms == pytest.approx(6**0.5 * scale / divisor, rel=1e-4, abs=0)


def test_nothing_was_encoded() -> None:
    assert ErrorMeter().rms == ErrorMeter().largest == 0.0
