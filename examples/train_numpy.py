"""Train a small network on several machines that come and go, in plain NumPy.

Start a coordinator, then this script as often as you like, wherever you like, whenever you
like; stop any of them with Ctrl-C or kill -9 and watch the others go on:

    ringhaul coordinator --listen 127.0.0.1:48148
    python examples/train_numpy.py 127.0.0.1:48148

All peers see other data. After every round all of them hold the same parameters, bit for bit.
"""

import os
import sys
import zlib

import numpy as np

import ringhaul
from ringhaul.diloco.sync import DiLoCo

ROUNDS = 100
INNER_STEPS = 50
LEARNING_RATE = 0.01


def forward(params, x):
    hidden = np.tanh(x @ params["w1"] + params["b1"])
    return hidden, hidden @ params["w2"]


def inner_step(params, rng):
    """One step of gradient descent on a batch nobody else has; returns the loss."""
    x = rng.uniform(-3, 3, (64, 1)).astype(np.float32)
    hidden, y = forward(params, x)
    error = y - np.sin(2 * x)
    by_y = 2 * error / len(x)
    by_hidden = by_y @ params["w2"].T * (1 - hidden**2)
    params["w2"] -= LEARNING_RATE * hidden.T @ by_y
    params["w1"] -= LEARNING_RATE * x.T @ by_hidden
    params["b1"] -= LEARNING_RATE * by_hidden.sum(axis=0)
    return float(np.mean(error**2))


def main():
    default = os.environ.get("RINGHAUL_COORDINATOR", "127.0.0.1:48148")
    address = sys.argv[1] if len(sys.argv) > 1 else default
    rng = np.random.default_rng()
    params = {
        "w1": rng.normal(0, 2, (1, 64)).astype(np.float32),
        "b1": rng.normal(0, 2, 64).astype(np.float32),
        "w2": rng.normal(0, 0.1, (64, 1)).astype(np.float32),
    }
    with ringhaul.connect(address) as comm:
        outer = DiLoCo(comm, params, INNER_STEPS)  # a newcomer gets the others' parameters here
        print(f"{comm.peer_id}: joined {comm.world_size} peers at round {outer.round}")
        while outer.round < ROUNDS:
            loss = inner_step(params, rng)
            done = outer.step()  # every 50th call averages over all peers, and lets new ones in
            if done is not None and done.round % 5 == 0:
                digest = zlib.crc32(params["w2"].tobytes())
                print(
                    f"round {done.round}: {done.world_size} peers, loss {loss:.4f}, "
                    f"digest {digest:08x}"
                )


if __name__ == "__main__":
    main()
