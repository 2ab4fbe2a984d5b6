"""One connection of a requester: what is asked on it, and what comes back.

Decides how much is under way. What is asked for is the plan's to say.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import zstandard

from ringhaul import limits
from ringhaul.errors import WireError
from ringhaul.io.sockets import DataSocket, StreamEnded
from ringhaul.quant.compression import Compressor
from ringhaul.state.content import Stage
from ringhaul.state.plan import FetchPlan
from ringhaul.wire.state_records import RECORD_BYTES, Kind, Packing, StateRecord

_RATE_WEIGHT = 0.3


class OnBlock(Protocol):
    """Takes a block that has arrived."""

    def __call__(
        self, lane: "Lane", index: int, block: memoryview | None, size: int, is_good: bool | None
    ) -> None:
        """Take it, or raise if it is not the elected one.

        `block` is None if it is in its slot of the stage; `size` is what came; `is_good` is
        what another thread has found, or None: it is still to be verified.
        """


@dataclass(frozen=True, slots=True)
class _Verifying:
    """A block that another thread looks at, in its slot; nobody writes there meanwhile."""

    index: int
    size: int
    is_good: Future[bool]


class Lane:
    """Asks one source on one connection. Never waits but in `wait`."""

    def __init__(
        self,
        sock: DataSocket,
        plan: FetchPlan,
        stage: Stage,
        *,
        is_holder: bool,
        claims: dict[int, "Lane"],
        on_block: OnBlock,
        verifier: Executor | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Nothing is asked yet.

        Args:
            sock: connected, after the handshake.
            plan: what is still to be fetched; this lane is one of its sources.
            stage: where plain blocks go.
            is_holder: the other side has everything.
            claims: blocks that some lane writes straight into the stage, shared by all.
            on_block: called with each block.
            verifier: hashes what lies in the stage, while the next block is read; None: `on_block`
                does it.
            clock: seconds, monotonic.
        """
        self.source = plan.add_source(is_holder=is_holder)
        self._sock = sock
        self._plan = plan
        self._stage = stage
        self._claims = claims
        self._on_block = on_block
        self._verifier = verifier
        #: In the order in which they came.
        self._verifying: deque[_Verifying] = deque()
        self._clock = clock
        self._head = memoryview(bytearray(RECORD_BYTES))
        self._head_filled = 0
        #: What follows the last header; None: a header is next.
        self._record: StateRecord | None = None
        self._filled = 0
        self._is_direct = False
        self._scratch: memoryview | None = None
        self._compressor = Compressor()
        self._under_way_bytes = 0
        self._rate: float | None = None
        self._marked_at = clock()
        info = sock.tcp_info()
        self._window_s = limits.STATE_WINDOW_S + 2 * (info.round_trip_s if info else 0.0)
        #: Since the last look at how much comes.
        self.read_bytes = 0

    @property
    def is_waiting(self) -> bool:
        """Is anything under way?"""
        return self._under_way_bytes > 0

    def now(self) -> float:
        """Of the clock that the plan is told."""
        return self._clock()

    def end(self) -> None:
        """The connection is of no use any more: what was under way is open again."""
        for block in self._verifying:  # its slot is written by nobody before it was looked at
            block.is_good.exception()
        self._verifying.clear()
        self._plan.drop_source(self.source)
        for index in [index for index, lane in self._claims.items() if lane is self]:
            del self._claims[index]

    # -- asking -------------------------------------------------------------------------------

    def ask(self) -> bytes:
        """The requests to send now; empty if enough is under way, or nothing is of use."""
        window_bytes = self._window_bytes()
        # several blocks at a time, if enough is under way meanwhile
        is_wide = window_bytes >= 2 * limits.STATE_REQUEST_BYTES
        least_bytes = limits.STATE_REQUEST_BYTES if is_wide else 1
        now = self._clock()
        out = b""
        while (
            window_bytes - self._under_way_bytes >= least_bytes
            and len(self._verifying) < limits.STATE_WINDOW_BLOCKS_MAX
        ):
            room_bytes = window_bytes - self._under_way_bytes
            request = self._plan.next_request(self.source, now, room_bytes)
            if request is None:
                break
            if not self._under_way_bytes:
                self._marked_at = now
            for index in range(request.first, request.first + request.count):
                self._under_way_bytes += self._stage.layout.size(index)
            out += StateRecord(Kind.WANT, request.first, request.count).encode()
        return out

    def _window_bytes(self) -> float:
        block = limits.STATE_BLOCK_BYTES
        if self._rate is None:
            return 2 * block
        most = limits.STATE_WINDOW_BLOCKS_MAX * block
        return min(max(self._rate * self._window_s, block), most)

    def _measure(self, size: int) -> None:
        """A block of so many bytes came since the last one."""
        now = self._clock()
        rate = size / max(now - self._marked_at, 1e-6)
        self._rate = rate if self._rate is None else self._rate + _RATE_WEIGHT * (rate - self._rate)
        self._marked_at = now

    # -- reading ------------------------------------------------------------------------------

    def settle(self) -> None:
        """Hand on what was verified meanwhile; if nothing else is to come, wait for it.

        That wait takes as long as to hash what lies there, some blocks, as if it were done here.
        """
        while self._verifying:
            block = self._verifying[0]
            is_last = not self.is_waiting
            if not (is_last or block.is_good.done()):
                return
            self._verifying.popleft()
            self._claims.pop(block.index, None)
            self._on_block(self, block.index, None, block.size, block.is_good.result())

    async def wait(self) -> None:
        """Wait until there is something to read; inside a block, until it is worth it."""
        least = 1
        if self._record is not None:
            least = min(self._record.count - self._filled, limits.RECEIVE_LOW_WATER_BYTES)
        self._sock.set_low_water(least)
        await self._sock.wait_readable()

    def read_nowait(self) -> bool:
        """Read what is there, at most to the end of a block; False if nothing is.

        Raises:
            StreamEnded: the connection ended, or the source broke the rules.
        """
        if self._record is None:
            count = self._sock.receive_nowait((self._head[self._head_filled :],))
            self._head_filled += count
        else:
            rest = self._target(self._record)[self._filled : self._record.count]
            count = self._sock.receive_nowait((rest, self._head))
            taken = min(count, len(rest))
            self._filled += taken
            self._head_filled = count - taken
            if self._filled == self._record.count:
                self._on_payload(self._record)
        self.read_bytes += count
        if self._record is None and self._head_filled == RECORD_BYTES:
            self._head_filled = 0
            try:
                self.take(StateRecord.decode(self._head))
            except WireError as error:
                raise StreamEnded(str(error)) from None
        return count > 0

    def take(self, record: StateRecord) -> None:
        """A record has come: news, or the header of a block."""
        block_count = self._stage.layout.block_count
        if record.kind is Kind.HAVE:
            if record.index > block_count or record.count > block_count - record.index:
                raise StreamEnded(f"has blocks up to {record.index + record.count}")
            self._plan.on_have(self.source, record.index, record.count)
            return
        if record.kind is not Kind.BLOCK:
            raise StreamEnded(f"{record.kind.name} was not asked for")
        is_twice = any(block.index == record.index for block in self._verifying)
        if is_twice or not self._plan.is_under_way(self.source, record.index):
            raise StreamEnded(f"block {record.index} was not asked for")
        size = self._stage.layout.size(record.index)
        plain = record.packing is Packing.PLAIN
        if record.count != size if plain else not 0 < record.count < size:
            raise StreamEnded(f"block {record.index} in {record.count} bytes instead of {size}")
        self._record = record
        self._filled = 0
        self._is_direct = (
            plain
            and not self._stage.is_here(record.index)
            and self._claims.setdefault(record.index, self) is self
        )

    def _target(self, record: StateRecord) -> memoryview:
        """Where the payload goes: never into a block that another lane has brought."""
        if self._is_direct and not self._stage.is_here(record.index):
            return self._stage.slot(record.index)
        if self._scratch is None:
            self._scratch = np.empty(limits.STATE_BLOCK_BYTES, np.uint8).data
        return self._scratch

    def _on_payload(self, record: StateRecord) -> None:
        self._record = None
        size = self._stage.layout.size(record.index)
        self._under_way_bytes -= size
        self._measure(record.count)
        if self._is_direct and self._verifier is not None and not self._stage.is_here(record.index):
            slot = self._stage.slot(record.index)
            is_good = self._verifier.submit(self._stage.is_elected, record.index, slot)
            self._verifying.append(_Verifying(record.index, record.count, is_good))
            return
        if self._is_direct:
            self._claims.pop(record.index, None)
            self._on_block(self, record.index, None, record.count, None)
            return
        assert self._scratch is not None
        block = self._scratch[: record.count]
        if record.packing is Packing.ZSTD and not self._stage.is_here(record.index):
            word_bytes = self._stage.layout.word_bytes(record.index)
            packed = np.frombuffer(block, np.uint8)
            try:
                block = self._compressor.unpack(packed, size, word_bytes).data
            except (WireError, zstandard.ZstdError) as error:
                raise StreamEnded(str(error)) from None
        self._on_block(self, record.index, block, record.count, None)
