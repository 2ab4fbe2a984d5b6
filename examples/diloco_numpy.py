"""DiLoCo in plain NumPy, in three added lines; peers may come and go at any time.

    python examples/diloco_numpy.py --local 3

starts a coordinator and three peers on this machine. On machines of your own, start
`ringhaul coordinator --listen 0.0.0.0:48148` where all can reach it, then on each

    python examples/diloco_numpy.py --coordinator HOST:48148 [--mode delayed] [--codec uint8]

Kill any of them with `kill -9`, start others: see `examples/README.md`. All peers see other
data; after every round all hold the same parameters, bit for bit: the digests printed are equal.
"""

import numpy as np
from local import add_network_options, connect, explained, make_parser, run_example, start_local

from ringhaul.diloco import DelayedDiLoCo, DiLoCo, StreamingDiLoCo

LEARNING_RATE = 0.01


def inner_step(params, rng):
    """One step of gradient descent towards sin(2x) on a batch nobody else has; the loss."""
    x = rng.uniform(-3, 3, (64, 1)).astype(np.float32)
    hidden = np.tanh(x @ params["in.w"] + params["in.b"])
    error = hidden @ params["out.w"] - np.sin(2 * x)
    by_y = 2 * error / len(x)
    by_hidden = by_y @ params["out.w"].T * (1 - hidden**2)
    params["out.w"] -= LEARNING_RATE * hidden.T @ by_y
    params["in.w"] -= LEARNING_RATE * x.T @ by_hidden
    params["in.b"] -= LEARNING_RATE * by_hidden.sum(axis=0)
    return float(np.mean(error**2))


def make_outer(args, comm, params):
    """The training loop that was asked for."""
    if args.mode == "sync":
        return DiLoCo(comm, params, args.inner_steps, codec=args.codec)
    if args.mode == "streaming":
        return StreamingDiLoCo(
            comm, params, args.inner_steps, fragments=2, overlap=5, codec=args.codec
        )
    return DelayedDiLoCo(
        comm, params, args.inner_steps, eager=args.mode == "eager", codec=args.codec
    )


def main():
    """Train until the run has made so many outer steps."""
    parser = make_parser(__doc__)
    add_network_options(parser)
    parser.add_argument("--mode", choices=["sync", "delayed", "eager", "streaming"], default="sync")
    parser.add_argument("--inner-steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--codec", default="raw")
    args = parser.parse_args()
    if args.local:
        raise SystemExit(start_local(__file__, args.local))

    rng = np.random.default_rng(0)
    params = {
        "in.w": rng.normal(0, 2, (1, 64)).astype(np.float32),
        "in.b": rng.normal(0, 2, 64).astype(np.float32),
        "out.w": rng.normal(0, 0.1, (64, 1)).astype(np.float32),
    }
    with connect(args) as comm:
        with explained():
            outer = make_outer(args, comm, params)  # a newcomer gets the run's parameters here
        print(f"{comm.peer_id}: {comm.world_size} peers, outer step {outer.round}", flush=True)
        is_round_end = True
        while outer.round < args.rounds or not is_round_end:
            data = np.random.default_rng((outer.position, comm.rank))
            loss = inner_step(params, data)
            done = outer.step()  # at the end of a round: average, let new ones in
            is_round_end = done is not None
            if is_round_end and done.world_size and done.round % 10 == 0:
                digest = outer.state.digest().hex()[:8]
                print(
                    f"{comm.peer_id}: outer step {done.round}, {done.world_size} peers, "
                    f"loss {loss:.4f}, digest {digest}",
                    flush=True,
                )
        outer.finish()


if __name__ == "__main__":
    run_example(main)
