"""One peer of a churn test: runs the program until it is told to leave, reports every call.

Started in advance: it waits on standard input for `go ADDRESS`, and then for `leave`. The end
of standard input means the same: the orchestrator is gone. SIGUSR1 writes all stacks to stderr.
"""

import argparse
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ringhaul
from ringhaul.cli.churn import program
from ringhaul.cli.churn.facts import LINES, Admitted, Called, Ended, Fact, Joined, Ready, Synced
from ringhaul.cli.churn.program import Block, Kind, Operation, Program

Array = NDArray[Any]

#: Elements of the shared state, as a share of those of the largest array.
_STATE_SHARE = 0.25
#: The state's values stay integers below this, a prime.
_STATE_END = 65521


class Orders:
    """What the orchestrator has said so far."""

    def __init__(self) -> None:
        self.leave = threading.Event()
        self.address: str | None = None
        self._has_gone = threading.Event()
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def wait_for_address(self) -> str | None:
        """Where to connect; None if there is nothing to do any more."""
        self._has_gone.wait()
        return self.address

    def _read(self) -> None:
        rest = b""
        while data := os.read(0, 4096):  # not sys.stdin, whose lock would be held at exit
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                word, _, argument = line.decode().partition(" ")
                if word == "go":
                    self.address = argument
                    self._has_gone.set()
                else:
                    self.leave.set()
        self.leave.set()
        self._has_gone.set()


class Member:
    """A communicator, the shared state, and the program."""

    def __init__(
        self, name: str, comm: ringhaul.Communicator, plan: Program, element_count: int
    ) -> None:
        self._name = name
        self._comm = comm
        self._plan = plan
        self._number = program.number_of(comm.peer_id)
        self._round = np.zeros(1, np.int64)
        self._weights = np.zeros(max(1, int(element_count * _STATE_SHARE)), np.float32)
        self._state = ringhaul.SharedState({"round": self._round, "weights": self._weights})
        #: Follows from whose contributions were committed in this round.
        self._mix = 0
        self.began_at = time.monotonic()

    def run(self, leave: threading.Event) -> None:
        """Round after round, until it is told to leave: at once, whatever the others are in."""
        wait_for_straddlers: Callable[[], None] = lambda: None  # noqa: E731
        while not leave.is_set():
            self._admit()
            wait_for_straddlers()
            wait_for_straddlers = lambda: None  # noqa: E731
            self._sync()
            for block in self._plan.blocks(int(self._round[0])):
                if leave.is_set():
                    return
                wait = self._begin(block)
                if block.straddles:
                    wait_for_straddlers = wait
                else:
                    wait()
            self._update()

    # -- membership and state -----------------------------------------------------------------

    def _admit(self) -> None:
        self.began_at = time.monotonic()
        membership = self._comm.admit()
        self._say(
            Admitted(
                peer=self._name,
                at=time.monotonic(),
                began_at=self.began_at,
                generation=membership.generation,
                ring_order=list(membership.ring_order),
            )
        )

    def _sync(self) -> None:
        self.began_at = time.monotonic()
        info = self._comm.sync_state(self._state)
        at = time.monotonic()
        self._say(
            Synced(
                peer=self._name,
                at=at,
                began_at=self.began_at,
                generation=self._comm.generation,
                revision=info.revision,
                digest=program.digest(self._round) + program.digest(self._weights),
                contributors=self._ring_order(),
            )
        )

    def _update(self) -> None:
        """Change the state alike on all members: it remembers every round's contributors."""
        weights = self._weights
        np.multiply(weights, np.float32(3), out=weights)
        np.add(weights, np.float32(self._mix % _STATE_END), out=weights)
        np.add(weights, np.arange(weights.size) % 7, out=weights, casting="unsafe")
        np.mod(weights, np.float32(_STATE_END), out=weights)
        self._round += 1
        self._state.revision += 1
        self._mix = 0

    def _ring_order(self) -> list[str]:
        """By rank, as of the last call; users see the ranks only."""
        return list(self._comm._view.ring_order)

    # -- operations ---------------------------------------------------------------------------

    def _begin(self, block: Block) -> Callable[[], None]:
        """Make the calls of a block; return what waits for those that are in flight."""
        first = block.operations[0]
        if first.kind is Kind.ASYNC:
            return self._begin_async(block.operations)
        if first.kind is Kind.MANY:
            self._call_many(block.operations)
        else:
            for operation in block.operations:
                self._call(operation)
        return lambda: None

    def _begin_async(self, operations: Sequence[Operation]) -> Callable[[], None]:
        """Post all, tagged ones in an order of this peer's own; wait in another."""
        dice = np.random.default_rng([self._number, operations[0].round])
        tags = list(dict.fromkeys(operation.tag for operation in operations))
        dice.shuffle(tags)
        begun = []
        for operation in sorted(operations, key=lambda o: tags.index(o.tag)):
            array = program.contribution(operation, self._number)
            out = np.empty_like(array) if operation.has_out else None
            began_at = time.monotonic()
            work = self._comm.all_reduce_async(
                array, operation.op, out=out, codec=operation.codec, tag=operation.tag
            )
            begun.append((operation, work, array, out, began_at))
        dice.shuffle(begun)

        def wait() -> None:
            for operation, work, array, out, began_at in begun:
                self.began_at = time.monotonic()
                info = work.wait()
                result = array if out is None else out
                self._report(operation, began_at, result, info, has_generation=False)

        return wait

    def _call_many(self, operations: Sequence[Operation]) -> None:
        arrays = [program.contribution(operation, self._number) for operation in operations]
        self.began_at = time.monotonic()
        infos = self._comm.all_reduce_many(
            arrays, operations[0].op, codec=operations[0].codec, max_in_flight=4
        )
        for operation, array, info in zip(operations, arrays, infos, strict=True):
            self._report(operation, self.began_at, array, info, has_generation=False)

    def _call(self, operation: Operation) -> None:
        """Make a blocking call, again if it was aborted for all; all members do the same."""
        comm = self._comm
        own = program.contribution(operation, self._number)
        array = own.copy()
        out = np.empty_like(array) if operation.has_out else None
        self.began_at = began_at = time.monotonic()
        how: dict[str, Any] = {"on_loss": operation.on_loss}
        for aborts in range(1000):
            info, root = None, None
            result: Array | None = array if out is None else out
            try:
                match operation.kind:
                    case Kind.BROADCAST:
                        rank = operation.index % comm.world_size
                        root = self._ring_order()[rank]
                        info = comm.broadcast(array, rank, out=out, **how)
                    case Kind.ALL_GATHER:
                        result = comm.all_gather(array, **how)
                    case Kind.REDUCE_SCATTER:
                        result = comm.reduce_scatter(array, operation.op, **how)
                    case Kind.BARRIER:
                        result = None
                        comm.barrier()
                    case _:
                        info = comm.all_reduce(
                            array, operation.op, out=out, codec=operation.codec, **how
                        )
            except ringhaul.CollectiveAborted:
                wrong = program.describe_difference(array, own)
                if wrong is not None:
                    raise RuntimeError(f"after an abort the array is changed: {wrong}") from None
                continue
            kept = array if result is not array else own
            self._report(operation, began_at, result, info, root=root, aborts=aborts)
            wrong = program.describe_difference(kept, own)
            if wrong is not None:
                raise RuntimeError(f"the input of {operation} was changed: {wrong}")
            return
        raise RuntimeError(f"{operation} was aborted a thousand times")

    def _report(
        self,
        operation: Operation,
        began_at: float,
        result: Array | None,
        info: ringhaul.ReduceInfo | None,
        *,
        root: str | None = None,
        aborts: int = 0,
        has_generation: bool = True,
    ) -> None:
        at = time.monotonic()
        contributors = self._ring_order() if info is None else list(info.contributors)
        self._mix += sum(program.number_of(peer_id) for peer_id in contributors)
        sources = contributors if root is None else [root]
        numbers = [program.number_of(peer_id) for peer_id in sources]
        wanted = program.expected(operation, numbers, self._comm.rank)
        error, wrong = 0.0, None
        if operation.is_lossy and result is not None and wanted is not None:
            error = float(np.max(np.abs(result - wanted), initial=0.0))
        else:
            wrong = program.describe_difference(result, wanted)
        self._say(
            Called(
                peer=self._name,
                at=at,
                began_at=began_at,
                round=operation.round,
                index=operation.index,
                kind=operation.kind.value,
                generation=self._comm.generation if has_generation else None,
                contributors=contributors,
                root=root,
                attempts=1 if info is None else info.attempts,
                aborts=aborts,
                digest=program.digest(result),
                wrong=wrong,
                error=error,
            )
        )
        self.began_at = time.monotonic()

    def _say(self, fact: Fact) -> None:
        say(fact)


def say(fact: Fact) -> None:
    """Report one fact."""
    sys.stdout.write(LINES.encode(fact) + "\n")
    sys.stdout.flush()


def take_part(name: str, address: str, plan: Program, count: int, orders: Orders) -> int:
    """Connect, run, and say how it ended."""
    member: Member | None = None
    began_at = time.monotonic()
    why, text = "left", ""
    try:
        with ringhaul.connect(address, name=name, listen="127.0.0.1:0") as comm:
            say(Joined(peer=name, at=time.monotonic(), peer_id=comm.peer_id))
            member = Member(name, comm, plan, count)
            member.run(orders.leave)
    except Exception as error:  # whatever it is, the orchestrator judges it
        traceback.print_exc()
        why, text = type(error).__name__, str(error)
    if member is not None:
        began_at = member.began_at
    say(Ended(peer=name, at=time.monotonic(), began_at=began_at, why=why, text=text))
    return 0 if why == "left" else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one peer."""
    parser = argparse.ArgumentParser(prog="python -m ringhaul.cli.churn.worker")
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, required=True, help="elements of the largest arrays")
    parser.add_argument("--concurrent", type=int, required=True)
    parser.add_argument("--codec", required=True)
    found = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format=f"%(asctime)s.%(msecs)03d {found.name} %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    orders = Orders()
    say(Ready(peer=found.name, at=time.monotonic()))
    address = orders.wait_for_address()
    if address is None:
        return 0
    plan = Program(
        seed=found.seed,
        element_count=found.count,
        concurrent=found.concurrent,
        codec=found.codec,
    )
    return take_part(found.name, address, plan, found.count, orders)


if __name__ == "__main__":
    sys.exit(main())
