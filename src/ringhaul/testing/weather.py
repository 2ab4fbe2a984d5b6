"""Bad networks and busy machines of a simulated world: what slows, holds back and cuts one way.

Its dice are its own, so that worlds without it replay as they did before there was any. What
it has done is counted among the rare paths.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringhaul.testing.process import Process
    from ringhaul.testing.simulator import World

#: TCP sends again after so long, and doubles it each time.
RETRANSMIT_S = 0.2
#: Bursts in which an interpreter is held, and how long it runs between two.
HELD_S = (0.3, 1.4)
HELD_PAUSE_S = 0.05


class Weather:
    """What is wrong with the network, besides what breaks."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._dice = random.Random(f"weather {world.seed}")
        self._is_calm = self._dice.random() < 0.5
        #: One way, seconds; and the share of messages that are lost and sent again.
        self._distance_s = 0.0
        self._loss = 0.0
        #: Until when all that a process sends up, or is sent down, is held back.
        self._clogged: dict[tuple[int, bool], float] = {}
        self._slow: set[int] = set()
        self._due: dict[int, Callable[[], None]] = {}
        if not self._is_calm:
            self._plan()

    def _plan(self) -> None:
        dice = self._dice
        if dice.random() < 0.3:
            self._distance_s = dice.choice((0.02, 0.1, 0.3))
        if dice.random() < 0.3:
            self._loss = dice.choice((0.005, 0.02, 0.05))
        kinds = [
            self._clog,
            self._swizzle,
            self._cut_one_way,
            self._half_open,
            self._black_hole,
            self._slow_down,
            self._hold_interpreter,
        ]
        for _ in range(dice.choice((1, 2, 3, 4))):
            self._due[dice.randrange(20, 300)] = dice.choice(kinds)

    def blow(self, act: int) -> None:
        """Do what is due at this act."""
        due = self._due.pop(act, None)
        if due is not None:
            due()

    def calm_down(self) -> None:
        """Nothing is held back, or slow, from now on; distances stay."""
        self._due.clear()
        self._clogged.clear()
        self._slow.clear()
        self._loss = 0.0

    def set_path(self, *, distance_s: float, loss: float) -> None:
        """How far everybody is from everybody, and how often a message is lost."""
        self._distance_s, self._loss = distance_s, loss

    # -- what it costs ------------------------------------------------------------------------

    def control_delay_s(self, process: Process, *, is_up: bool) -> float:
        """What a control message takes longer than usual."""
        if self._is_calm and not self._loss:
            return self._distance_s
        delay_s = self._distance_s + self._lost_s()
        held_s = self._clogged.get((process.index, is_up), 0.0) - self._world.agenda.now
        if held_s > delay_s:
            self._count("held back by a clogged connection")
            return held_s
        return delay_s

    def transfer_delay_s(self, processes: list[Process]) -> float:
        """What a transfer around these processes takes longer than usual."""
        delay_s = self._distance_s * len(processes) + self._lost_s()
        if any(process.index in self._slow for process in processes):
            self._count("a slow link")
            delay_s += self._dice.uniform(1.0, 4.0)
        return delay_s

    def _lost_s(self) -> float:
        again_s, delay_s = RETRANSMIT_S, 0.0
        while self._loss and self._dice.random() < self._loss:
            delay_s += again_s
            again_s *= 2
        return delay_s

    # -- what it does -------------------------------------------------------------------------

    def _clog(self) -> None:
        process = self._pick()
        if process is not None:
            self._hold_back(process, self._dice.uniform(0.5, 4.0))

    def _swizzle(self) -> None:
        """Many are clogged together, and set free one by one: all order between them is lost."""
        self._count("swizzled")
        for process in self._alive():
            self._hold_back(process, self._dice.uniform(0.1, 3.0))

    def _hold_back(self, process: Process, duration_s: float) -> None:
        is_up = self._dice.random() < 0.5
        until = self._world.agenda.now + duration_s
        self._world.trace("weather", f"{process.name}: {is_up=} clogged for {duration_s:.2f} s")
        self._clogged[process.index, is_up] = until

    def _cut_one_way(self) -> None:
        process = self._pick()
        if process is not None and process.connection is not None:
            is_up = self._dice.random() < 0.5
            way = "up" if is_up else "down"
            self._count(f"control connection cut one way, {way}")
            self._world.trace("weather", f"{process.name}: {way} is cut")
            self._world.control.cut_one_way(process.connection, is_up=is_up)

    def _half_open(self) -> None:
        process = self._pick()
        if process is not None and process.connection is not None:
            tells_peer = self._dice.random() < 0.7
            who = "peer" if tells_peer else "coordinator"
            self._count(f"half-open, only the {who} knows")
            self._world.trace("weather", f"{process.name}: half-open, the {who} knows")
            self._world.control.half_open(process.connection, tells_peer=tells_peer)

    def _black_hole(self) -> None:
        pair = self._world.data.pick_link(self._dice)
        if pair is not None:
            self._world.trace("weather", f"{pair[0].name} -> {pair[1].name} swallows data")
            self._world.data.black_hole(pair)
            if self._dice.random() < 0.3:
                heal = self._world.data.stalled.discard
                self._world.agenda.after(self._dice.uniform(0.5, 9.0), lambda: heal(pair))

    def _slow_down(self) -> None:
        process = self._pick()
        if process is not None:
            self._slow.add(process.index)

    def _hold_interpreter(self) -> None:
        """A thread holds the interpreter lock again and again: the kernel still acknowledges."""
        process = self._pick()
        if process is not None:
            self._world.trace("weather", f"{process.name}: its interpreter is held")
            self._hold(process, self._dice.randrange(2, 6))

    def _hold(self, process: Process, bursts: int) -> None:
        if not process.is_alive or not bursts:
            return
        if not process.is_paused:
            self._count("interpreter held")
            process.pause(self._dice.uniform(*HELD_S))
        self._world.agenda.after(HELD_S[1] + HELD_PAUSE_S, lambda: self._hold(process, bursts - 1))

    def _alive(self) -> list[Process]:
        return [process for process in self._world.processes if process.is_alive]

    def _pick(self) -> Process | None:
        alive = self._alive()
        return self._dice.choice(alive) if alive else None

    def _count(self, path: str) -> None:
        self._world.ledger.seen[path] += 1
