"""Codecs on one core: rate, bytes and error of each, on made-up and on real data.

Rates are float32 bytes in per second, GB = 1e9 bytes, of segments of 1 MiB that lie in the cache:
`encode` writes own values; `decode_add` adds them to what came; `hop` does both at once, as a rank
of a ring does; with NumPy alone, and with compiled kernels where numba is installed (the extra
"fast"). The median CPU time of many passes that take turns, so that other processes on the machine
show less, and ratios to the yardstick ("one scale", the least that NumPy needs) even less.
Errors are of an all-reduce (sum) over `--peers` peers in this process: the largest and the root of
the mean square, as a share of the root of the mean square of the result (of its deviation from its
mean, for data with an offset). Results are checked. `python bench/codecs.py --json`
"""

import argparse
import json
import math
import statistics
import sys
import time
from typing import Any

import numpy as np
import xxhash
from common import cpu_name
from numpy.typing import NDArray

from ringhaul import compiled
from ringhaul.cli.demo.corpus import load_corpus
from ringhaul.cli.demo.model import ByteModel
from ringhaul.ids import ReduceOp
from ringhaul.quant import Codec, SegmentCoder, codec_names, find_codec
from ringhaul.quant.blocks import BlockCodec
from ringhaul.quant.fine import FineCodec
from ringhaul.ring.plan import Phase
from ringhaul.ring.reduce import Kernel
from ringhaul.testing.codec_ring import ring_all_reduce
from ringhaul.testing.twins import installed

Array = NDArray[Any]
SEGMENT_ELEMENTS = 1 << 18
PASSES = 4
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


def sums() -> dict[str, dict[str, Any]]:
    """Of 16-bit floats, as a ring adds them: to float32 partial results."""
    subjects = {}
    rng = np.random.default_rng(0)
    for name in ("float16", "bfloat16", "float32"):
        kernel = Kernel(ReduceOp.AVG, name, 2)
        wide = rng.standard_normal(SEGMENT_ELEMENTS).astype(np.float32)
        own, total = wide.astype(kernel.dtype), np.empty_like(wide)
        result = np.empty_like(own)
        subjects[name] = {
            "combine": lambda k=kernel, w=wide, o=own, t=total: k.combine(w, o, t),
            "finish": lambda k=kernel, w=wide, o=own, r=result: k.finish(w, o, r),
        }
    payload = wide.view(np.uint8).data
    subjects["float32"]["digest"] = lambda: xxhash.xxh3_128_intdigest(payload)
    return subjects


def rates_of(subjects: dict[str, dict[str, Any]], rounds: int) -> dict[str, dict[str, float]]:
    """GB/s of every pass of every subject, in turns; each first fetches its data to the cache."""
    times: dict[tuple[str, str], list[float]] = {}
    for index in range(rounds + 1):
        for name, passes in subjects.items():
            for kind, act in passes.items():
                act()
                started = time.thread_time()
                for _ in range(PASSES):
                    act()
                if index >= 1:
                    times.setdefault((name, kind), []).append(time.thread_time() - started)
    rates: dict[str, dict[str, float]] = {}
    for (name, kind), taken in times.items():
        rate = 4e-9 * SEGMENT_ELEMENTS * PASSES / statistics.median(taken)
        rates.setdefault(name, {})[kind] = rate
    return rates


def rates_by_kernels(
    subjects: dict[str, dict[str, Any]], rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    """`rates_of` with NumPy alone, and with compiled kernels if there are any."""
    with installed({}):
        found = {"numpy": rates_of(subjects, rounds)}
    if compiled.is_available():
        compiled.load()
        found["compiled"] = rates_of(subjects, rounds)
    return found


# -- Output -----------------------------------------------------------------------------------


def print_rates(found: dict[str, Any]) -> None:
    print(
        f"1 core of {found['machine']}, NumPy {found['numpy']}; float32 in GB/s: NumPy / compiled"
    )
    first = next(iter(found["rates"].values()))
    for name, kinds in first.items():
        cells = []
        for kind in kinds:
            rates = [f"{of[name][kind]:5.2f}" for of in found["rates"].values()]
            cells.append(f"{kind:>12} {' / '.join(rates)}")
        print(f"{name:<12}", *cells)


def print_errors(found: dict[str, Any]) -> None:
    kinds = list(next(iter(found["errors"].values())))
    print(f"{found['peers']} peers: bytes of raw / bytes; largest / rms error per rms of the sum")
    print(f"{'codec':<14}{'ratio':>7}", *(f"{kind:>23}" for kind in kinds))
    for name, errors in found["errors"].items():
        print(
            f"{name:<14}{errors[kinds[0]]['ratio']:7.2f}",
            *(f"{errors[kind]['max']:11.2e} / {errors[kind]['rms']:9.2e}" for kind in kinds),
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
        codecs += [
            FineCodec(f"{bits}/{length}/{slots}", bits, length, slots)
            for bits in (8, 4)
            for length in (1024, 2048)
            for slots in (length // 64, length * 15 // 512, length * 3 // 64)
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
    subjects = {codec.name: passes_of(codec) for codec in codecs}
    subjects |= {"one scale": yardsticks()} | sums()
    found = {
        "peers": args.peers,
        "machine": cpu_name(),
        "numpy": np.__version__,
        "rates": rates_by_kernels(subjects, args.rounds),
        "errors": {
            codec.name: {kind: error_of(codec, arrays) for kind, arrays in data.items()}
            for codec in codecs
        },
    }
    if args.json:
        print(json.dumps(found))
    else:
        print_rates(found)
        print_errors(found)


if __name__ == "__main__":
    main(sys.argv[1:])
