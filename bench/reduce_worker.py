"""One rank of one implementation, for `bench/all_reduce.py`: orders in, times out.

`python bench/reduce_worker.py KIND CONTROL_PORT RANK WORLD_SIZE PLACE [STREAMS]`: KIND is a key
of `KINDS`, PLACE is where its ranks meet. It dials the control port of the loopback interface,
says hello or why it cannot, and then answers one JSON line per order. Orders come by socket, so
that idle ranks block: an MPI rank that waits in a collective would take a core from the others.
"""

import contextlib
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from common import MIB

#: What a sender's and a receiver's buffer hold surely: below it nobody waits for anybody.
SMALL_BYTES = 64 << 10
#: Calls before those that count, at every order: the caches were others' meanwhile.
WARM_UP_CALLS = 2
PATTERN = 7
Array = np.ndarray[Any, np.dtype[np.float32]]


class NotHere(Exception):
    """An implementation that is not installed; says what is missing."""


class Ringhaul:
    """The library of this repository."""

    modes: ClassVar = {"ringhaul out=", "ringhaul in place", "ringhaul 8 at once"}

    def __init__(self, rank: int, world_size: int, place: str, streams: int | None) -> None:
        import ringhaul

        self._comm = ringhaul.connect(place, min_world_size=world_size, streams=streams)
        self.rank = self._comm.rank
        self.barrier = self._comm.barrier

    def reduce(self, mode: str, array: Array, out: Array) -> Array:
        """Run one all-reduce; return where the result is."""
        comm = self._comm
        if mode == "ringhaul in place":
            comm.all_reduce(array)
            return array
        if mode == "ringhaul out=":
            comm.all_reduce(array, out=out)
            return out
        if not hasattr(comm, "all_reduce_async"):
            raise NotHere("all_reduce_async is not in this version")
        pairs = zip(np.array_split(array, 8), np.array_split(out, 8), strict=True)
        works = [comm.all_reduce_async(part, out=target) for part, target in pairs]
        for work in works:
            work.wait()
        return out

    def close(self) -> None:
        """Leave."""
        self._comm.close()


class Gloo:
    """PyTorch's, over the loopback interface."""

    modes: ClassVar = {"gloo"}

    def __init__(self, rank: int, world_size: int, place: str, streams: int | None) -> None:
        try:
            import torch.distributed as dist

            import torch
        except ImportError:
            raise NotHere("torch is not installed") from None
        torch.set_num_threads(1)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group(
            "gloo", init_method=f"tcp://{place}", rank=rank, world_size=world_size
        )
        self._torch, self._dist = torch, dist
        self.rank = rank
        self.barrier = dist.barrier

    def reduce(self, mode: str, array: Array, out: Array) -> Array:
        """Run one all-reduce, in place: there is no other."""
        self._dist.all_reduce(self._torch.from_numpy(array))
        return array

    def close(self) -> None:
        """Leave."""
        self._dist.destroy_process_group()


class OpenMPI:
    """Whatever mpirun has started this rank; by `all_reduce.py`, Open MPI over TCP."""

    modes: ClassVar = {"Open MPI"}

    def __init__(self, rank: int, world_size: int, place: str, streams: int | None) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise NotHere(f"mpi4py: {error}") from None
        self._mpi = MPI
        self.rank = MPI.COMM_WORLD.Get_rank()
        assert MPI.COMM_WORLD.Get_size() == world_size
        self.barrier = MPI.COMM_WORLD.Barrier

    def reduce(self, mode: str, array: Array, out: Array) -> Array:
        """Run one all-reduce, in place."""
        self._mpi.COMM_WORLD.Allreduce(self._mpi.IN_PLACE, array)
        return array

    def close(self) -> None:
        """Leave: mpi4py does at exit."""


class Exchange:
    """The limit: the bytes that a ring moves, sent and received by bare blocking sockets."""

    modes: ClassVar = {"exchange"}

    def __init__(self, rank: int, world_size: int, place: str, streams: int | None) -> None:
        ports = [int(port) for port in place.split(",")]
        self.rank, self._world_size = rank, world_size
        with socket.create_server(("127.0.0.1", ports[rank])) as listener:
            while True:
                try:
                    address = ("127.0.0.1", ports[(rank + 1) % world_size])
                    self._next = socket.create_connection(address)
                    break
                except ConnectionRefusedError:
                    time.sleep(0.01)
            self._previous = listener.accept()[0]
        self._target = memoryview(bytearray(MIB))

    def barrier(self) -> None:
        """A byte, as often around as it takes."""
        for _ in range(self._world_size - 1):
            self._next.sendall(b"x")
            self._previous.recv(1)

    def reduce(self, mode: str, array: Array, out: Array) -> None:
        """Move the bytes; there is no sum to check."""
        count = 2 * (self._world_size - 1) * array.nbytes // self._world_size
        data = memoryview(array).cast("B")
        if count <= SMALL_BYTES:
            self._send(data, count)
            self._receive(count)
            return
        sender = threading.Thread(target=self._send, args=(data, count))
        sender.start()
        self._receive(count)
        sender.join()

    def _send(self, data: memoryview, count: int) -> None:
        while count:
            part = data[:count]
            self._next.sendall(part)
            count -= len(part)

    def _receive(self, count: int) -> None:
        while count:
            count -= self._previous.recv_into(self._target[: min(count, MIB)])

    def close(self) -> None:
        """Leave."""
        self._next.close()
        self._previous.close()


KINDS: dict[str, Any] = {
    "ringhaul": Ringhaul,
    "gloo": Gloo,
    "mpi": OpenMPI,
    "exchange": Exchange,
}


def contribution(rank: int, count: int) -> Array:
    """Sums of these are exact, and name who is in them."""
    pattern = (np.arange(count, dtype=np.int64) % PATTERN + 1).astype(np.float32)
    return np.multiply(pattern, np.float32(2**rank), out=pattern)


def measure(
    rank: Any, world_size: int, mode: str, bytes_count: int, calls: int
) -> dict[str, list[float]]:
    """Times of so many calls, the last one's result checked element by element."""
    own = contribution(rank.rank, bytes_count // 4)
    array, out = own.copy(), np.zeros_like(own)
    seconds, cpu_s = [], []
    for index in range(WARM_UP_CALLS + calls):
        np.copyto(array, own)
        rank.barrier()
        started, cpu = time.perf_counter(), cpu_used()
        result = rank.reduce(mode, array, out)
        if index >= WARM_UP_CALLS:
            seconds.append(time.perf_counter() - started)
            cpu_s.append(cpu_used() - cpu)
    if result is not None:
        own *= np.float32((2**world_size - 1) / 2**rank.rank)
        assert np.array_equal(result, own), f"{mode}: a wrong sum of {bytes_count} bytes"
    return {"seconds": seconds, "cpu_s": cpu_s}


def cpu_used() -> float:
    """CPU seconds of this process so far, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def started(words: list[str]) -> Iterator[Any]:
    """This rank, connected to the others."""
    kind, _, rank, world_size, place, *streams = words
    made = KINDS[kind](
        int(os.environ.get("OMPI_COMM_WORLD_RANK", rank)),
        int(world_size),
        place,
        int(streams[0]) if streams else None,
    )
    yield made
    made.close()


def main() -> None:
    """Dial, connect, obey until the control connection ends."""
    words = sys.argv[1:]
    world_size = int(words[3])
    control = socket.create_connection(("127.0.0.1", int(words[1])))
    with control, control.makefile("rw", encoding="utf-8") as lines:

        def answer(**fields: Any) -> None:
            lines.write(json.dumps(fields) + "\n")
            lines.flush()

        try:
            with started(words) as rank:
                answer(ready=rank.rank)
                for line in lines:
                    order = json.loads(line)
                    try:
                        answer(**measure(rank, world_size, **order))
                    except NotHere as reason:
                        answer(skipped=str(reason))
        except NotHere as reason:
            answer(skipped=str(reason))


if __name__ == "__main__":
    main()
