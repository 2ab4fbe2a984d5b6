"""What codecs do to training: the demo's model and outer optimizer, by steps and not by the clock.

    python bench/codec_training.py --seeds 3

Peers train in this process, each on batches of its own; after every `INNER_STEPS` their
pseudo-gradients are averaged by the ring of `ringhaul.testing.codec_ring` and Nesterov makes the
outer step, as `ringhaul demo` does. The same seed gives the same start and the same batches with
every codec, so runs differ by the codec alone. Held-out bits per byte at the end, and how much more
that is than with "raw" and the same seed.
"""

import argparse
import json
import statistics

import numpy as np
from common import print_table, say

from ringhaul import compiled
from ringhaul.cli.demo.corpus import Corpus, load_corpus
from ringhaul.cli.demo.model import ByteModel
from ringhaul.cli.demo.worker import (
    BATCH_COUNT,
    FINAL_LEARNING_RATE_SHARE,
    INNER_STEPS,
    LEARNING_RATE,
    WARM_UP_STEPS,
)
from ringhaul.diloco.outer import nesterov
from ringhaul.ids import ReduceOp
from ringhaul.quant import ErrorFeedback, find_codec
from ringhaul.testing.codec_ring import ring_all_reduce

FEEDBACK = "+feedback"


def flat(model: ByteModel) -> np.ndarray:
    """The parameters, one after the other."""
    return np.concatenate([values.ravel() for values in model.params.values()])


def write(model: ByteModel, values: np.ndarray) -> None:
    """Make `values` the parameters."""
    start = 0
    for param in model.params.values():
        param[...] = values[start : start + param.size].reshape(param.shape)
        start += param.size


def train(corpus: Corpus, codec: str, seed: int, peers: int, rounds: int) -> float:
    """Held-out bits per byte after so many rounds."""
    models = [ByteModel(seed) for _ in range(peers)]
    rngs = [np.random.default_rng([seed, peer]) for peer in range(peers)]
    name = codec.removesuffix(FEEDBACK)
    codecs = [ErrorFeedback(name) for _ in models] if codec.endswith(FEEDBACK) else find_codec(name)
    outer = nesterov()
    values = flat(models[0])
    buffers = outer.make_buffers(values)
    step_count = rounds * INNER_STEPS
    for done in range(rounds):
        for index in range(done * INNER_STEPS, (done + 1) * INNER_STEPS):
            fall = 1.0 - (1.0 - FINAL_LEARNING_RATE_SHARE) * index / step_count
            rate = LEARNING_RATE * fall * min(1.0, (index + 1) / WARM_UP_STEPS)
            for model, rng in zip(models, rngs, strict=True):
                model.train_step(corpus.train, rng, BATCH_COUNT, rate)
        found = ring_all_reduce([values - flat(model) for model in models], codecs, ReduceOp.AVG)
        outer.step(values, found.results[0], buffers)
        for model in models:
            write(model, values)
    return models[0].bits_per_byte(corpus.held_out)


def main() -> None:
    """Train with every codec and seed; print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codecs", default="raw,bf16,uint8,uint4,uint4-sr,uint4+feedback")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if compiled.is_available():
        compiled.load()
    corpus = load_corpus()
    bits: dict[str, list[float]] = {codec: [] for codec in args.codecs.split(",")}
    for seed in range(args.seeds):
        for codec, found in bits.items():
            found.append(train(corpus, codec, seed, args.peers, args.rounds))
            say(f"  seed {seed}, {codec}: {found[-1]:.4f} bits per byte")
    if args.json:
        print(json.dumps({"peers": args.peers, "rounds": args.rounds, "bits_per_byte": bits}))
        return
    rows = []
    for codec, found in bits.items():
        percent = [100 * (b / raw - 1) for b, raw in zip(found, bits["raw"], strict=True)]
        cells = [statistics.mean(found), statistics.mean(percent), min(percent), max(percent)]
        rows.append([codec, *(f"{cell:.4f}" for cell in cells)])
    print_table(["codec", "bits per byte", "% over raw: mean", "least", "most"], rows)


if __name__ == "__main__":
    main()
