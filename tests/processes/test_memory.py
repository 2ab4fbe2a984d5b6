"""How much memory a peer needs during an all-reduce, beside the caller's arrays."""

import subprocess
import sys

import pytest

from ringhaul.testing.processes import CoordinatorProcess

pytestmark = pytest.mark.slow

MIB = 1 << 20
ARRAY_MIB = 128
PROGRAM = f"""
import resource, sys
import numpy as np
import ringhaul
from ringhaul import compiled

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

with ringhaul.connect(sys.argv[1], min_world_size=2) as comm:
    array = np.ones({ARRAY_MIB * MIB // 4}, np.float32)
    out = np.ones_like(array) if sys.argv[2] == "out" else None
    comm.all_reduce(np.ones(1000, np.float32))
    if (thread := compiled.start()) is not None:
        thread.join()  # numba itself takes some 110 MiB, once, where it is installed
    before = peak()
    for _ in range(2):
        comm.all_reduce(array, out=out, codec=sys.argv[3])
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
@pytest.mark.parametrize(
    ("form", "codec", "most_mib"),
    [
        ("out", "raw", 64),
        ("in place", "raw", ARRAY_MIB + 64),
        ("out", "uint8", ARRAY_MIB // 4 + 64),
        ("out", "uint4", ARRAY_MIB // 8 + 64),
    ],
)
def test_an_all_reduce_needs_little_memory_of_its_own(form: str, codec: str, most_mib: int) -> None:
    with CoordinatorProcess() as coordinator:
        peers = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, coordinator.address, form, codec],
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        extra_mib = [int(peer.communicate(timeout=100)[0]) / MIB for peer in peers]

    assert max(extra_mib) <= most_mib
