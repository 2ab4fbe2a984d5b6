"""The calls of a benchmark. Every peer makes the same ones, and all end with the same figures."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ringhaul.cli.bench.options import BenchOptions
from ringhaul.cli.bench.reaching import address_of, telling_when_reached
from ringhaul.communicator import Communicator
from ringhaul.errors import MismatchError, RinghaulError
from ringhaul.joining import connect

#: Calls that count, per size and number of streams.
CALLS_MIN, CALLS_MAX = 3, 20
LATENCY_CALLS = 10
#: Between two numbers of streams all leave and come again; who is not back then is lost.
RETURN_S = 60.0
#: The contribution of rank r is 2**r times 1, 2, ..., 7, 1, ...: its sums are exact for so many.
EXACT_RANKS_MAX = 16
PATTERN = 7


class WrongResult(RinghaulError):
    """A sum was not what it has to be. A bug of the library: please report it."""


class WrongNumberOfPeers(RinghaulError):
    """More peers were started than `--peers` says. Start as many."""


@dataclass(frozen=True, slots=True)
class Row:
    """All-reduce of one size with one number of streams; None: the library's choice."""

    streams: int | None
    size_bytes: int
    calls: int
    median_s: float
    worst_s: float
    algbw_GB_s: float  # noqa: N815 - the unit is GB
    busbw_GB_s: float  # noqa: N815
    per_stream_GB_s: float | None  # noqa: N815


@dataclass(frozen=True, slots=True)
class Findings:
    """What a benchmark has found: the same on all peers."""

    world_size: int
    latency_s: float
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        return {
            "world_size": self.world_size,
            "latency_s": self.latency_s,
            "rows": [asdict(row) for row in self.rows],
        }


Progress = Callable[[str], None]


def measure(options: BenchOptions, progress: Progress) -> tuple[Findings, bool]:
    """Connect once per number of streams and measure; also, was this rank 0 at first?

    Raises:
        RinghaulError: not all was well; a lost peer ends a benchmark.
    """
    rows: list[Row] = []
    latency_s = 0.0
    is_first = False
    choices: tuple[int | None, ...] = (None, *options.streams)
    for number, streams in enumerate(choices):
        with (
            _connect_first(options, progress)
            if number == 0
            else _connect(options, streams, admission_timeout_s=RETURN_S)
        ) as comm:
            if comm.world_size != options.peers:
                raise WrongNumberOfPeers(f"{comm.world_size} peers came, not {options.peers}")
            if number == 0:
                is_first = comm.rank == 0
                _check_same_options(comm, options)
                latency_s = _latency(comm)
                progress(f"{comm.world_size} peers, barrier {latency_s * 1e3:.2f} ms")
            for size_bytes in options.sizes_bytes():
                row = _measure_size(comm, streams, size_bytes, options.seconds)
                progress(
                    f"streams {streams or 'default'}, {size_bytes} bytes: {row.busbw_GB_s:.3f} GB/s"
                )
                rows.append(row)
            comm.barrier()  # nobody leaves before all have their result
    return Findings(options.peers, latency_s, tuple(rows)), is_first


def _connect_first(options: BenchOptions, progress: Progress) -> Communicator:
    """Whoever starts it may take their time; say for what this peer waits."""
    address = address_of(options.address)
    progress(f"connecting to {address}")

    def tell() -> None:
        progress(f"waiting until {options.peers} peers are there")

    with telling_when_reached(address, tell):
        return _connect(options, None, admission_timeout_s=None)


def _connect(
    options: BenchOptions, streams: int | None, *, admission_timeout_s: float | None
) -> Communicator:
    return connect(
        options.address,
        streams=streams,
        min_world_size=options.peers,
        admission_timeout_s=admission_timeout_s,
    )


def _check_same_options(comm: Communicator, options: BenchOptions) -> None:
    chosen = options.fingerprint()
    least, most = np.empty_like(chosen), np.empty_like(chosen)
    comm.all_reduce(chosen, "min", out=least, on_loss="raise")
    comm.all_reduce(chosen, "max", out=most, on_loss="raise")
    if not np.array_equal(least, most):
        raise MismatchError("the peers were started with different options: use the same on all")


def _latency(comm: Communicator) -> float:
    """Median seconds of a barrier."""
    seconds = np.zeros(LATENCY_CALLS)
    comm.barrier()
    for index in range(LATENCY_CALLS):
        started = time.perf_counter()
        comm.barrier()
        seconds[index] = time.perf_counter() - started
    comm.all_reduce(seconds, "max", on_loss="raise")
    return float(np.median(seconds))


def _measure_size(comm: Communicator, streams: int | None, size_bytes: int, budget_s: float) -> Row:
    """One row: a call to warm up says how many calls the time allows."""
    pattern = (np.arange(size_bytes // 4, dtype=np.int64) % PATTERN + 1).astype(np.float32)
    own = pattern * np.float32(2 ** (comm.rank % EXACT_RANKS_MAX))
    out = np.empty_like(own)
    warm_up_s = np.array([_timed(comm, own, out), _timed(comm, own, out)])
    comm.all_reduce(warm_up_s, "max", on_loss="raise")
    calls = max(CALLS_MIN, min(CALLS_MAX, int(budget_s / warm_up_s[1])))
    seconds = np.array([_timed(comm, own, out) for _ in range(calls)])
    comm.all_reduce(seconds, "max", on_loss="raise")
    weights = [2 ** (rank % EXACT_RANKS_MAX) for rank in range(comm.world_size)]
    pattern *= np.float32(sum(weights))
    if not np.array_equal(out, pattern):
        raise WrongResult(f"the sum of {size_bytes} bytes over {comm.world_size} peers is wrong")
    return row_of(streams, size_bytes, comm.world_size, seconds.tolist())


def _timed(comm: Communicator, own: Any, out: Any) -> float:  # noqa: ANN401 - arrays
    """Seconds of one call that all begin together."""
    comm.barrier()
    started = time.perf_counter()
    comm.all_reduce(own, out=out, on_loss="raise")
    return time.perf_counter() - started


def row_of(streams: int | None, size_bytes: int, world_size: int, seconds: list[float]) -> Row:
    """What follows from the times of the slowest peer, call by call."""
    median_s = statistics.median(seconds)
    algbw = size_bytes / median_s / 1e9
    busbw = algbw * 2 * (world_size - 1) / world_size
    return Row(
        streams=streams,
        size_bytes=size_bytes,
        calls=len(seconds),
        median_s=median_s,
        worst_s=max(seconds),
        algbw_GB_s=algbw,
        busbw_GB_s=busbw,
        per_stream_GB_s=None if streams is None else busbw / streams,
    )
