"""Codecs on one core: rate, bytes and error of each, on made-up and on real data.

Rates are float32 bytes in per second, GB = 1e9 bytes, of segments of 1 MiB: `encode` writes
own values; `decode_add` adds them to what came; `hop` does both at once, as a rank of a ring
does. The median CPU time of many passes that take turns, so that other processes on the machine
show less, and ratios to the yardstick ("one scale", the least that NumPy needs) even less.
Errors are of an all-reduce (sum) over `--peers` peers in this process: the largest and the root of
the mean square, as a share of the root of the mean square of the result (of its deviation from its
mean, for data with an offset). Results are checked. `python bench/codecs.py --json`
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringhaul.cli.demo.corpus import load_corpus
from ringhaul.cli.demo.model import ByteModel
from ringhaul.ids import ReduceOp
from ringhaul.quant import Codec, SegmentCoder, codec_names, find_codec
from ringhaul.quant.base import quiet_arithmetic
from ringhaul.quant.blocks import BlockCodec
from ringhaul.ring.plan import Phase
from ringhaul.testing.codec_ring import ring_all_reduce

Array = NDArray[Any]
SEGMENT_ELEMENTS = 1 << 18
INNER_STEPS = 20


# -- Data -------------------------------------------------------------------------------------


def made_up(kind: str, peers: int, count: int) -> list[Array]:
    rng = np.random.default_rng(1)
    arrays = []
    for _ in range(peers):
        values = rng.standard_normal(count)
        if kind == "heavy":
            values *= np.exp(1.5 * rng.standard_normal(count))
        elif kind == "offset":
            values += 1000.0
        arrays.append(values.astype(np.float32))
    return arrays


def flat(model: ByteModel) -> Array:
    return np.concatenate([values.ravel() for values in model.params.values()])


def trained(peers: int, steps: int) -> tuple[list[Array], list[Array]]:
    """Weights of the demo's model, one set a peer, and pseudo-gradients of a round from them."""
    train = load_corpus().train
    weights, pseudo_gradients = [], []
    for peer in range(peers):
        model = ByteModel(1)
        rng = np.random.default_rng(7)
        for _ in range(steps):  # alike on all peers
            model.train_step(train, rng, 128, 2e-3)
        before = flat(model)
        rng = np.random.default_rng(100 + peer)
        for _ in range(INNER_STEPS):
            model.train_step(train, rng, 128, 2e-3)
        weights.append(flat(model))
        pseudo_gradients.append(before - flat(model))
    return weights, pseudo_gradients


# -- Measures ---------------------------------------------------------------------------------


def error_of(codec: Codec, arrays: list[Array]) -> dict[str, float]:
    wanted = np.sum([array.astype(np.float64) for array in arrays], axis=0)
    found = ring_all_reduce(arrays, codec)
    assert len({result.tobytes() for result in found.results}) == 1, codec.name
    error = found.results[0] - wanted
    scale = wanted.std() if abs(wanted.mean()) > wanted.std() else math.sqrt(np.mean(wanted**2))
    raw_bytes = 2 * (len(arrays) - 1) * arrays[0].nbytes
    return {
        "max": float(np.abs(error).max() / scale),
        "rms": float(math.sqrt(np.mean(error**2)) / scale),
        "ratio": raw_bytes / found.wire_bytes,
    }


def passes_of(codec: Codec) -> dict[str, Any]:
    """What is timed for one codec: each takes one segment through."""
    coder = SegmentCoder(codec, ReduceOp.SUM, np.dtype(np.float32), 2, time.perf_counter)
    if coder.compressor is not None:
        coder.compressor.link_bytes_per_s = 25e6
    rng = np.random.default_rng(0)
    own, out = (rng.standard_normal(SEGMENT_ELEMENTS).astype(np.float32) for _ in range(2))
    size_max = coder.encoded_size(Phase.REDUCE_SCATTER, own.size)
    data, passed = np.empty(size_max, np.uint8), np.empty(size_max, np.uint8)
    payload = data[: coder.encode_own(own, data)].copy()
    return {
        "encode": lambda: coder.encode_own(own, data),
        "decode_add": lambda: coder.decode_add(payload, own, out),
        "hop": lambda: coder.pass_on(payload, own, passed),
    }


def yardsticks() -> dict[str, Any]:
    """The least that NumPy needs: one scale for all, in blocks of 64 Ki elements."""
    count = SEGMENT_ELEMENTS
    rng = np.random.default_rng(0)
    own, out = (rng.standard_normal(count).astype(np.float32) for _ in range(2))
    scratch = np.empty(1 << 16, np.float32)
    codes = np.zeros(count, np.uint8)
    scale, rounder = np.float32(0.02), np.float32(1.5 * 2**23)
    blocks = [slice(start, start + (1 << 16)) for start in range(0, count, 1 << 16)]

    def encode() -> None:
        for block in blocks:
            own[block].min()
            own[block].max()
            np.multiply(own[block], scale, out=scratch)
            np.add(scratch, rounder, out=scratch)
            np.copyto(codes[block], scratch.view(np.int32), casting="unsafe")

    def decode_add() -> None:
        for block in blocks:
            np.multiply(codes[block], scale, out=scratch, casting="unsafe")
            np.add(scratch, own[block], out=out[block])

    return {"encode": encode, "decode_add": decode_add, "hop": lambda: (decode_add(), encode())}


def rates_of(subjects: dict[str, dict[str, Any]], rounds: int) -> dict[str, dict[str, float]]:
    """GB/s of every pass of every subject, in turns."""
    times: dict[tuple[str, str], list[float]] = {}
    with quiet_arithmetic():
        pass  # the first use makes NumPy's machinery
    for index in range(rounds + 2):
        for name, passes in subjects.items():
            for kind, act in passes.items():
                started = time.thread_time()
                act()
                if index >= 2:
                    times.setdefault((name, kind), []).append(time.thread_time() - started)
    rates: dict[str, dict[str, float]] = {}
    for (name, kind), taken in times.items():
        rates.setdefault(name, {})[kind] = 4e-9 * SEGMENT_ELEMENTS / statistics.median(taken)
    return rates


# -- Output -----------------------------------------------------------------------------------


def print_table(found: dict[str, Any]) -> None:
    kinds = list(next(iter(found["codecs"].values()))["errors"])
    print(f"{found['peers']} peers, 1 core of {found['machine']}; rates of float32 in GB/s")
    print(
        f"{'codec':<14}{'encode':>8}{'dec+add':>8}{'hop':>8}{'ratio':>7}",
        *(f"{kind + ' max / rms':>25}" for kind in kinds),
    )
    for name, row in found["codecs"].items():
        rate, errors = row["rates"], row["errors"]
        print(
            f"{name:<14}{rate['encode']:8.2f}{rate['decode_add']:8.2f}{rate['hop']:8.2f}"
            f"{errors[kinds[0]]['ratio']:7.2f}",
            *(f"{errors[kind]['max']:13.2e} / {errors[kind]['rms']:9.2e}" for kind in kinds),
        )
    rate = found["yardstick"]
    print(
        f"{'one scale':<14}{rate['encode']:8.2f}{rate['decode_add']:8.2f}{rate['hop']:8.2f}   "
        "(no blocks, no zero, no check: the least that NumPy needs)"
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=3)
    parser.add_argument("--mib", type=float, default=4.0, help="of the arrays made up")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--train-steps", type=int, default=100)
    parser.add_argument("--codecs", default=None, help="names with commas; default: all")
    parser.add_argument("--blocks", action="store_true", help="compare block lengths instead")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.quick:
        args.mib, args.rounds, args.train_steps = 0.5, 3, 3
    if args.blocks:
        codecs: list[Codec] = [
            BlockCodec(f"{bits} bits/{length}", bits, length)
            for bits in (8, 4)
            for length in (128, 256, 512, 1024, 2048, 4096)
        ]
    else:
        names = args.codecs.split(",") if args.codecs else [*codec_names(), "raw+zstd"]
        if args.codecs is None:
            names += ["uint8+zstd", "uint4+zstd"]
        codecs = [find_codec(name) for name in names]
    weights, pseudo_gradients = trained(args.peers, args.train_steps)
    count = int(args.mib * (1 << 20) / 4)
    data = {kind: made_up(kind, args.peers, count) for kind in ("normal", "heavy", "offset")}
    data |= {"weights": weights, "pseudo-gradient": pseudo_gradients}
    subjects = {codec.name: passes_of(codec) for codec in codecs} | {"one scale": yardsticks()}
    rates = rates_of(subjects, args.rounds)
    found = {
        "peers": args.peers,
        "machine": platform.processor() or platform.machine(),
        "numpy": np.__version__,
        "codecs": {
            codec.name: {
                "rates": rates[codec.name],
                "errors": {kind: error_of(codec, arrays) for kind, arrays in data.items()},
            }
            for codec in codecs
        },
        "yardstick": rates["one scale"],
    }
    if args.json:
        print(json.dumps(found))
    else:
        print_table(found)


if __name__ == "__main__":
    main(sys.argv[1:])
