"""One process of the demo: trains the model in the ring, or alone, until it is told to end.

The word to end is the end of its standard input. Nobody may leave while others wait for it, so
the end is decided from shared data: at the start of every round the members reduce "I was
told to end" with `max`, and all get the same answer. A newcomer stands at that very point
when its `DiLoCo` is made.
"""

import argparse
import hashlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import ringhaul
from ringhaul.cli.demo.corpus import Corpus, load_corpus
from ringhaul.cli.demo.events import Connected, Evaluated, Event, Finished, RoundDone, encode
from ringhaul.cli.demo.model import ByteModel
from ringhaul.diloco.sync import DiLoCo

#: Inner steps of a round: a fifth of a second where two processes share a core.
INNER_STEPS = 20
BATCH_COUNT = 256
LEARNING_RATE = 8e-3
#: The learning rate falls in a straight line to this share of it at the deadline.
FINAL_LEARNING_RATE_SHARE = 0.05
#: Inner steps until a peer's fresh Adam takes full steps.
WARM_UP_STEPS = 50
#: Held-out bytes of the quick look that rank 0 takes while the others wait, and how often.
SAMPLE_BYTES = 8 << 10
SAMPLE_INTERVAL_ROUNDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """The command line of one process."""

    name: str
    #: None: alone, without a ring.
    address: str | None
    #: Of the first parameters: the same on all peers, so that any may found the run.
    model_seed: int
    #: Of the order of the training data: another one on each peer.
    data_seed: int
    codec: str
    #: Beginning and planned end of training, for the learning rate; seconds since the epoch.
    begin_at: float
    end_at: float


class Trainer:
    """The inner steps: model, data, and the learning rate by the clock."""

    def __init__(self, options: WorkerOptions, corpus: Corpus) -> None:
        self.model = ByteModel(options.model_seed)
        self.step_count = 0
        self._options = options
        self._corpus = corpus
        self._rng = np.random.default_rng(options.data_seed)

    def step(self) -> float:
        """One inner step; returns bits per byte on its batch."""
        self.step_count += 1
        return self.model.train_step(
            self._corpus.train, self._rng, BATCH_COUNT, self._learning_rate(time.time())
        )

    def _learning_rate(self, now: float) -> float:
        """By the clock, so that a newcomer takes steps as long as the others do."""
        begin_at, end_at = self._options.begin_at, self._options.end_at
        spent = min(max((now - begin_at) / (end_at - begin_at), 0.0), 1.0)
        fall = 1.0 - (1.0 - FINAL_LEARNING_RATE_SHARE) * spent
        return LEARNING_RATE * fall * min(1.0, self.step_count / WARM_UP_STEPS)


def digest(params: Mapping[str, NDArray[np.floating]]) -> str:
    """BLAKE2b of names and bytes: equal if and only if all parameters are, bit for bit."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(params):
        state.update(name.encode() + b"\0")
        state.update(params[name].tobytes())
    return state.hexdigest()


def train_in_ring(options: WorkerOptions, corpus: Corpus, told: threading.Event) -> None:
    """Connect, train until all agree that it is over, leave, and say how it went."""
    assert options.address is not None
    trainer = Trainer(options, corpus)
    model = trainer.model
    with ringhaul.connect(options.address, name=options.name) as comm:
        outer = DiLoCo(comm, model.params, INNER_STEPS, codec=options.codec)
        _report_connected(options.name, comm)
        while not _is_over(comm, told):
            _train_round(options.name, comm, outer, trainer, corpus)
        rank = comm.rank
        finished = Finished(
            peer=options.name,
            at=time.time(),
            steps=trainer.step_count,
            rounds=outer.round,
            rank=rank,
            digest=digest(model.params),
        )
    _report(finished)
    if rank == 0:
        _report_evaluated(options.name, model, corpus)


def train_alone(options: WorkerOptions, corpus: Corpus, told: threading.Event) -> None:
    """The same inner steps with the same clock, and nobody to average with."""
    trainer = Trainer(options, corpus)
    while not told.is_set():
        trainer.step()
    _report(
        Finished(
            peer=options.name,
            at=time.time(),
            steps=trainer.step_count,
            rounds=0,
            rank=0,
            digest=digest(trainer.model.params),
        )
    )
    _report_evaluated(options.name, trainer.model, corpus)


def _train_round(
    name: str, comm: ringhaul.Communicator, outer: DiLoCo, trainer: Trainer, corpus: Corpus
) -> None:
    """Inner steps until a round is committed; report it."""
    losses: list[float] = []
    info = None
    while info is None:
        losses.append(trainer.step())
        info = outer.step()
    done_at = time.time()
    sample_bits = None
    if comm.rank == 0 and info.round % SAMPLE_INTERVAL_ROUNDS == 0:
        sample_bits = trainer.model.bits_per_byte(corpus.held_out[:SAMPLE_BYTES])
    _report(
        RoundDone(
            peer=name,
            at=done_at,
            round=info.round,
            generation=comm.generation,
            rank=comm.rank,
            world_size=comm.world_size,
            contributors=list(info.contributors),
            attempts=info.attempts,
            reduce_s=info.reduce_s,
            train_bits_per_byte=sum(losses) / len(losses),
            sample_bits_per_byte=sample_bits,
        )
    )


def _is_over(comm: ringhaul.Communicator, told: threading.Event) -> bool:
    """Was any member told to end? A collective; the same answer on all."""
    is_told = np.array([told.is_set()], np.float32)
    comm.all_reduce(is_told, "max")
    return bool(is_told[0])


def _listen() -> threading.Event:
    """Set once standard input ends: by the orchestrator's word, or by its death."""
    told = threading.Event()

    def read() -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock would be held at exit
            pass
        told.set()

    threading.Thread(target=read, name="word", daemon=True).start()
    return told


def _report_connected(name: str, comm: ringhaul.Communicator) -> None:
    _report(
        Connected(
            peer=name,
            at=time.time(),
            peer_id=comm.peer_id,
            generation=comm.generation,
            rank=comm.rank,
            world_size=comm.world_size,
        )
    )


def _report_evaluated(name: str, model: ByteModel, corpus: Corpus) -> None:
    bits = model.bits_per_byte(corpus.held_out)
    _report(Evaluated(peer=name, at=time.time(), bits_per_byte=bits))


def _report(event: Event) -> None:
    print(encode(event), flush=True)


def _parse(arguments: Sequence[str] | None) -> WorkerOptions:
    """The command line; the orchestrator's, so every option is required."""
    parser = argparse.ArgumentParser(prog="python -m ringhaul.cli.demo.worker")
    parser.add_argument("--name", required=True)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--address", metavar="HOST:PORT")
    where.add_argument("--alone", action="store_true")
    parser.add_argument("--model-seed", type=int, required=True)
    parser.add_argument("--data-seed", type=int, required=True)
    parser.add_argument("--codec", default="raw")
    parser.add_argument("--begin-at", type=float, required=True, metavar="UNIX_TIME")
    parser.add_argument("--end-at", type=float, required=True, metavar="UNIX_TIME")
    found = parser.parse_args(arguments)
    return WorkerOptions(
        name=found.name,
        address=found.address,
        model_seed=found.model_seed,
        data_seed=found.data_seed,
        codec=found.codec,
        begin_at=found.begin_at,
        end_at=found.end_at,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one process of the demo."""
    options = _parse(arguments)
    corpus = load_corpus()
    if options.address is None:
        train_alone(options, corpus, _listen())
    else:
        train_in_ring(options, corpus, _listen())


if __name__ == "__main__":
    main()
