"""All loops over real peers on loopback that come, leave and are killed: the same bits always."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ringhaul import Communicator, connect
from ringhaul.diloco import DelayedDiLoCo, DiLoCo, StreamingDiLoCo
from ringhaul.diloco.loop import OuterLoop
from ringhaul.testing.threads import PATIENCE_S, Cluster, Driver

Params = dict[str, NDArray[np.float32]]
Make = Callable[[Communicator, Params], OuterLoop]

KINDS: dict[str, Make] = {
    "sync": lambda comm, params: DiLoCo(comm, params, 4, codec="uint8"),
    "delayed": lambda comm, params: DelayedDiLoCo(comm, params, 4, codec="uint8"),
    "eager": lambda comm, params: DelayedDiLoCo(comm, params, 4, eager=True),
    "penalized": lambda comm, params: DelayedDiLoCo(comm, params, 4, staleness_penalty=True),
    "streaming": lambda comm, params: StreamingDiLoCo(
        comm, params, 8, fragments=3, overlap=1, codec="uint4"
    ),
    "streaming, several in flight": lambda comm, params: StreamingDiLoCo(
        comm, params, 8, fragments=4, overlap=5
    ),
}


class Told(Exception):
    """This peer ends here, without goodbye."""


class Trainer:
    """One peer: noise instead of gradients; remembers the shared bits at the end of each round."""

    def __init__(self, make: Make, seed: int, until_round: int | None = None) -> None:
        self.seen: dict[int, bytes] = {}
        self.told_to_end = threading.Event()
        self.told_to_die = threading.Event()
        self.rounds = threading.Semaphore(0)
        self._until_round = until_round
        self._make = make
        self._rng = np.random.default_rng(seed)

    def run(self, comm: Communicator) -> int:
        """Train until all have agreed to end; returns the number of outer steps."""
        shapes = {f"layers.{i}.w": (40, 30 + i) for i in range(4)}
        params: Params = {
            name: self._rng.standard_normal(shape, np.float32) for name, shape in shapes.items()
        }
        outer = self._make(comm, params)
        while not self._is_over(comm, outer):
            info = None
            while info is None:
                for values in params.values():
                    values += 0.01 * self._rng.standard_normal(values.shape, np.float32)
                if self.told_to_die.is_set() and outer.position % 4 == 2:
                    comm._runtime.abandon()
                    raise Told
                info = outer.step(weight=1.0 + self._rng.random())
            self.seen[info.position] = outer.state.digest()
            self.rounds.release()
        return outer.round

    def _is_over(self, comm: Communicator, outer: OuterLoop) -> bool:
        """If it is not known when, by a collective of the program itself, between the rounds."""
        if self._until_round is not None:
            return outer.round >= self._until_round
        flag = np.array([self.told_to_end.is_set()], np.float32)
        comm.all_reduce(flag, "max")
        return bool(flag[0])

    def wait_rounds(self, count: int) -> None:
        for _ in range(count):
            assert self.rounds.acquire(timeout=PATIENCE_S), "no round ends"


@pytest.fixture
def cluster() -> Iterator[Cluster[Communicator]]:
    with Cluster(connect) as cluster:
        yield cluster


def start(cluster: Cluster[Communicator], trainer: Trainer) -> tuple[Driver[Communicator], Any]:
    driver = cluster.driver()
    return driver, driver.begin(trainer.run)


@pytest.mark.parametrize("kind", KINDS)
def test_all_hold_the_same_bits_whoever_comes_and_goes(
    cluster: Cluster[Communicator], kind: str
) -> None:
    trainers = [Trainer(KINDS[kind], seed) for seed in range(5)]
    first, second, third, fourth, fifth = trainers
    futures = [start(cluster, trainer)[1] for trainer in (first, second, third)]
    for trainer in (first, second, third):
        trainer.wait_rounds(2)
    futures.append(start(cluster, fourth)[1])
    second.told_to_die.set()
    fourth.wait_rounds(3)
    third.told_to_die.set()
    futures.append(start(cluster, fifth)[1])
    fifth.wait_rounds(3)
    first.told_to_end.set()

    ends = [future.exception(PATIENCE_S) or future.result() for future in futures]

    assert [type(end) for end in ends] == [int, Told, Told, int, int]
    assert ends[0] == ends[3] == ends[4]
    by_position: dict[int, set[bytes]] = {}
    for trainer in trainers:
        for position, digest in trainer.seen.items():
            by_position.setdefault(position, set()).add(digest)
    assert [position for position, digests in by_position.items() if len(digests) > 1] == []
    shared = [position for position in fifth.seen if position in first.seen]
    assert len(shared) >= 3


@pytest.mark.parametrize("kind", ["sync", "delayed", "streaming"])
def test_who_is_alone_trains_on_and_takes_others_in(
    cluster: Cluster[Communicator], kind: str
) -> None:
    lone, newcomer = Trainer(KINDS[kind], 0), Trainer(KINDS[kind], 1)
    future = start(cluster, lone)[1]
    lone.wait_rounds(3)
    later = start(cluster, newcomer)[1]
    newcomer.wait_rounds(2)
    lone.told_to_die.set()
    newcomer.wait_rounds(4)
    newcomer.told_to_end.set()

    assert isinstance(future.exception(PATIENCE_S), Told)
    assert later.result(PATIENCE_S) >= 5
    assert all(
        newcomer.seen[position] == lone.seen[position]
        for position in newcomer.seen
        if position in lone.seen
    )


@pytest.mark.parametrize("kind", ["sync", "delayed", "streaming"])
def test_below_min_world_size_members_wait_for_a_newcomer_and_keep_step(kind: str) -> None:
    def founding(address: str) -> Communicator:
        return connect(address, min_world_size=2)

    with Cluster(founding) as cluster:
        trainers = [Trainer(KINDS[kind], seed, until_round=40) for seed in range(3)]
        futures = [start(cluster, trainer)[1] for trainer in trainers[:2]]
        for trainer in trainers[:2]:
            trainer.wait_rounds(2)
        trainers[1].told_to_die.set()
        assert isinstance(futures[1].exception(PATIENCE_S), Told)
        futures.append(start(cluster, trainers[2])[1])

        assert futures[0].result(PATIENCE_S) == futures[2].result(PATIENCE_S)
        shared = set(trainers[0].seen) & set(trainers[2].seen)
        assert len(shared) >= 3
        assert all(trainers[0].seen[at] == trainers[2].seen[at] for at in shared)
