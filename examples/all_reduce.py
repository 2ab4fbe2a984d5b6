"""Sum an array over all peers, forever, while peers come and go.

In one shell:   ringhaul coordinator --listen 127.0.0.1:48148
In some others: python examples/all_reduce.py 127.0.0.1:48148
Kill any of them (kill -9 too) and start it again: the others go on.
"""

import sys
import time

import numpy as np

import ringhaul

address = sys.argv[1] if len(sys.argv) > 1 else None  # else RINGHAUL_COORDINATOR, or this machine
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000

with ringhaul.connect(address) as comm:
    print(f"I am {comm.peer_id}, rank {comm.rank} of {comm.world_size}")
    for _ in range(rounds):
        comm.admit()  # let waiting peers in; cheap when nobody waits
        gradient = np.full(1_000_000, comm.rank + 1, dtype=np.float32)
        info = comm.all_reduce(gradient, op="avg")  # in place; a lost peer costs only time
        print(
            f"generation {comm.generation}: average {gradient[0]:.2f} of {info.world_size} peers, "
            f"{info.duration_s * 1000:.1f} ms, {info.attempts} attempt(s)"
        )
        time.sleep(0.5)
