"""The program that all simulated peers run: rounds of admit and collectives.

What a round holds follows from the world's seed and the round's number alone; the number is
agreed on through the first all-reduce of the round, so that newcomers learn it.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ringhaul.core.peer.steps import View
from ringhaul.errors import RinghaulError
from ringhaul.ids import OnLoss, PeerId, ReduceOp
from ringhaul.testing.data_plane import Value
from ringhaul.testing.state_plane import Cells, first_cells, hashed, next_cells
from ringhaul.wire.records import CollectiveKind, Signature, StateReport, Strategy

if TYPE_CHECKING:
    from ringhaul.testing.process import Process

CALM_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Request:
    """One call; `signature` is None for `admit`."""

    signature: Signature | None = None
    tag: str | None = None
    value: int = 0
    state: StateReport | None = None
    cells: Cells = ()


@dataclass(frozen=True, slots=True)
class Result:
    """How a call ended."""

    view: View | None
    value: Value = ()
    error: RinghaulError | None = None

    @property
    def is_below_minimum(self) -> bool:
        """Too few members are left: the call failed without asking anybody."""
        return self.error is not None and "call admit" in str(self.error)


ADMIT = Request()
AGREE = Signature(kind=CollectiveKind.ALL_REDUCE, op=ReduceOp.MAX, dtype="int64", element_count=1)
BARRIER = Signature(kind=CollectiveKind.BARRIER)
SYNC = Signature(kind=CollectiveKind.SYNC_STATE, layout="sim")
SUM = Signature(kind=CollectiveKind.ALL_REDUCE, op=ReduceOp.SUM, dtype="float32", element_count=8)
GATHER = replace(SUM, kind=CollectiveKind.ALL_GATHER, op=None)
SCATTER = replace(SUM, kind=CollectiveKind.REDUCE_SCATTER)
#: Values are these times the peer's index, plus the round.
ROUNDS_MAX = 1000

Script = Generator[list[Request], list[Result], None]


class Application:
    """One process's run of the program."""

    def __init__(self, process: Process, *, seed: int, admits_twice: bool) -> None:
        self._process = process
        self._seed = seed
        self._admits_twice = admits_twice
        self._round = 0
        #: What the last call that told it said of the ring: the same on all members.
        self._ring: tuple[PeerId, ...] = ()
        self._has_admitted = False
        self._revision = 0
        self._content = first_cells(process.index)
        #: Rounds without any error since it was last set to 0.
        self.clean_rounds = 0
        #: In this round it calls something else than the others.
        self.errs_in: int | None = None

    def script(self, *, admits_first: bool) -> Script:
        """Loop until the process ends."""
        if admits_first or self._admits_twice:
            yield [ADMIT]
        while True:
            agreed = (yield [Request(AGREE, value=self._round)])[0]
            if agreed.error is not None:
                self.clean_rounds = 0
                if agreed.is_below_minimum:
                    yield [ADMIT]
                continue
            self._round = max(value for _, value in agreed.value)
            self._note_ring([agreed])
            is_clean, is_short = yield from self._do_round()
            if is_short:
                yield [ADMIT]
                continue
            self._round += 1
            if self._round % 2 == 0 and not self._has_admitted:
                admitted = yield [ADMIT]
                is_clean = is_clean and admitted[0].error is None
                if self._admits_twice:
                    admitted = yield [ADMIT]
                    is_clean = is_clean and admitted[0].error is None
            self.clean_rounds = self.clean_rounds + 1 if is_clean else 0

    def _do_round(self) -> Generator[list[Request], list[Result], tuple[bool, bool]]:
        dice = random.Random(f"{self._seed} {self._round}")
        is_clean = True
        admits_in_flight = not self._admits_twice and dice.random() < 0.3
        self._has_admitted = admits_in_flight
        batch_count = dice.randrange(1, 3)
        for number in range(batch_count):
            batch = [self._pick(dice) for _ in range(dice.choice((1, 1, 1, 2, 3)))]
            if any(request.signature == SYNC for request in batch):
                del batch[1:]  # a report made before another sync has ended would be stale
            if self.errs_in == self._round and batch[0].signature is not None:
                wrong = replace(batch[0].signature, element_count=99)
                batch[0] = replace(batch[0], signature=wrong)
                self.errs_in = None
            if admits_in_flight and number == batch_count - 1:
                batch.append(ADMIT)
            results = yield batch
            self._note_ring(results)
            for request, result in zip(batch, results, strict=True):
                if result.error is not None:
                    is_clean = False
                elif request.signature == SYNC:
                    self._revision, self._content = self._process.elected
            if batch[-1] != ADMIT and any(result.is_below_minimum for result in results):
                return False, True
        return is_clean, False

    def _note_ring(self, results: list[Result]) -> None:
        for result in results:
            if result.view is not None:
                self._ring = result.view.ring_order

    def _pick(self, dice: random.Random) -> Request:
        tag = dice.choice((None, None, "a", "b"))
        on_loss = OnLoss.RAISE if dice.random() < 0.25 else OnLoss.RETRY
        kind = dice.random()
        if kind < 0.15:
            return Request(replace(BARRIER, on_loss=on_loss), tag)
        if kind < 0.35:
            return self._sync_request(tag)
        value = self._process.index * ROUNDS_MAX + self._round
        if kind < 0.6:
            # by a rank, as the program sees it: it may be lost meanwhile
            root = self._ring[self._round % len(self._ring)]
            signature = replace(GATHER, kind=CollectiveKind.BROADCAST, root=root)
        else:
            signature = GATHER if kind < 0.7 else SCATTER if kind < 0.8 else SUM
        return Request(replace(signature, on_loss=on_loss), tag, value)

    def _sync_request(self, tag: str | None) -> Request:
        """Offer what everybody makes of the last content alike."""
        revision = self._revision + 1
        cells = next_cells(self._content, revision)
        digest = hashed(cells).digest
        report = StateReport(revision=revision, digest=digest, strategy=Strategy.POPULAR)
        return Request(SYNC, tag, state=report, cells=cells)
