"""Peers in threads that meet in memory: what training loops call, without any network.

Every call is a meeting of all members, settled when the last one has come. Tests say which
meetings fail, and who waits to be admitted.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ringhaul.quant import Codec
from ringhaul.state.shared import SharedState

Array = NDArray[np.floating]
WAIT_S = 20.0
T = TypeVar("T")


@dataclass(frozen=True)
class Reduced:
    """As `ReduceInfo`."""

    world_size: int
    contributors: tuple[str, ...]
    attempts: int = 1
    duration_s: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass(frozen=True)
class Synced:
    """As `SyncInfo`."""

    revision: int


@dataclass(frozen=True)
class Admitted:
    """As `Membership`."""

    admitted: bool


@dataclass
class MeetingGroup:
    """Members meet in every call; each meeting is settled when the last one has come."""

    names: list[str]
    log: list[str] = field(default_factory=list)
    newcomers: list[str] = field(default_factory=list)
    #: Errors that all members get instead of the next meetings of that kind; None: no error.
    failures: dict[str, list[Exception | None]] = field(default_factory=dict)
    #: Who is lost just before the next meetings of that kind are settled.
    losses: dict[str, list[str | None]] = field(default_factory=dict)
    #: Sums meet before the tallies posted with them.
    sums_first: bool = False
    #: Pending peers as of the last meeting.
    pending: int = 0
    last_revision: int | None = None
    synced: set[str] = field(default_factory=set)
    calls: dict[str, tuple[str, object]] = field(default_factory=dict)
    meeting: int = 0
    results: dict[str, object] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def call(self, name: str, kind: str, payload: object) -> object:
        """Meet the others; returns or raises what the meeting came to."""
        with self.changed:
            assert self.changed.wait_for(lambda: name in self.names, WAIT_S), f"{name} forgotten"
            mine = self.meeting
            self.calls[name] = (kind, payload)
            if len(self.calls) == len(self.names):
                self.settle()
            assert self.changed.wait_for(lambda: self.meeting > mine, WAIT_S), f"{kind} hangs"
            result = self.results[name]
            if isinstance(result, Exception):
                raise result
            return result

    def settle(self) -> None:
        """All are here."""
        kinds = {kind for kind, _ in self.calls.values()}
        assert len(kinds) == 1, f"members called different things: {self.calls}"
        (kind,) = kinds
        self.log.append(kind)
        payloads = {name: self.calls[name][1] for name in self.names}
        if (lost := _next(self.losses, kind)) is not None:
            self.names = [name for name in self.names if name != lost]
            self.results[lost] = Lost(lost)
            del payloads[lost]
        failure = _next(self.failures, kind)
        result: object = failure
        if failure is None:
            settle: Callable[[dict[str, object]], object] = getattr(
                self, f"settle_{kind.partition('/')[0]}"
            )
            result = settle(payloads)
        self.results.update(dict.fromkeys(payloads, result))
        self.pending = len(self.newcomers)
        self.calls = {}
        self.meeting += 1
        self.changed.notify_all()

    def settle_reduce(self, payloads: dict[str, object]) -> Reduced:
        """Sum, in the order of the names."""
        arrays = [p for p in payloads.values() if isinstance(p, tuple)]
        total = np.zeros_like(arrays[0][0])
        for values, _ in arrays:
            total += values
        for _, out in arrays:
            out[:] = total
        names = tuple(self.names)
        return Reduced(len(names), names)

    settle_tally = settle_reduce

    def settle_admit(self, payloads: dict[str, object]) -> Admitted:
        """Let the newcomers in."""
        came, self.newcomers = self.newcomers, []
        self.names = self.names + came
        return Admitted(bool(came))

    def settle_sync(self, payloads: dict[str, object]) -> Synced:
        """The highest revision among those that hold the state; it has to follow."""
        states = {name: s for name, s in payloads.items() if isinstance(s, SharedState)}
        holders = {name: s for name, s in states.items() if name in self.synced} or states
        elected = max(holders.values(), key=lambda state: state.revision)
        digests = {state.digest() for name, state in holders.items() if name in self.synced}
        assert len(digests) <= 1, "the members hold different states"
        if self.last_revision is not None:
            allowed = (self.last_revision, self.last_revision + 1)
            assert elected.revision in allowed, f"{elected.revision} does not follow {allowed}"
        for state in states.values():
            for name, array in state.arrays.items():
                np.copyto(array, elected.arrays[name])
            state.revision = elected.revision
        self.last_revision = elected.revision
        self.synced |= set(states)
        return Synced(elected.revision)


class Lost(Exception):
    """This peer was killed."""


def _next(queues: dict[str, list[T | None]], kind: str) -> T | None:
    """The next entry of a kind, if any."""
    queue = queues.get(kind)
    return queue.pop(0) if queue else None


class MeetingWork:
    """As `Work`; the meeting is where it is waited for."""

    def __init__(self, meet: Callable[[], object]) -> None:
        self._meet = meet
        #: Meets before this one.
        self.earlier: MeetingWork | None = None
        self._result: Reduced | Exception | None = None

    def done(self) -> bool:
        """Has it been waited for?"""
        return self._result is not None

    def wait(self, timeout_s: float | None = None) -> Reduced:
        """Meet, once."""
        if self._result is None:
            try:
                if self.earlier is not None:
                    self.earlier.wait()
                result = self._meet()
                assert isinstance(result, Reduced)
                self._result = result
            except Exception as error:
                self._result = error
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


@dataclass(frozen=True)
class MeetingComm:
    """One peer's end of a `MeetingGroup`."""

    group: MeetingGroup
    name: str
    group_count: int = 1
    tallies: list["MeetingWork"] = field(default_factory=list)

    @property
    def peer_id(self) -> str:
        """The name."""
        return self.name

    @property
    def world_size(self) -> int:
        """How many meet."""
        return len(self.group.names)

    @property
    def pending_peers(self) -> int:
        """As of the last meeting."""
        return self.group.pending

    def admit(self, timeout_s: float | None = None) -> Admitted:
        """As of `Communicator`."""
        result = self.group.call(self.name, "admit", None)
        assert isinstance(result, Admitted)
        return result

    def all_reduce_async(
        self,
        array: Array,
        op: str = "sum",
        *,
        out: Array | None = None,
        codec: str | Codec = "raw",
        tag: str | None = None,
        timeout_s: float | None = None,
    ) -> MeetingWork:
        """As of `Communicator`; logged as `tally`, or `reduce/FRAGMENT`."""
        assert op == "sum"
        assert out is not None
        assert tag is not None
        kind = "tally" if tag.endswith("/tally") else tag.replace("diloco", "reduce")
        sent = array.copy()  # what is changed while it is in flight would not be sent for sure
        work = MeetingWork(lambda: self.group.call(self.name, kind, (sent, out)))
        if kind == "tally":
            self.tallies.append(work)
        elif self.group.sums_first and self.tallies:
            self.tallies.pop().earlier = work
        return work

    def sync_state(
        self, state: SharedState, strategy: str = "popular", timeout_s: float | None = None
    ) -> Synced:
        """As of `Communicator`."""
        result = self.group.call(self.name, "sync", state)
        assert isinstance(result, Synced)
        return result


def meet(*peers: Callable[[], object]) -> None:
    """Run each peer in a thread of its own; raise what one of them raised but `Lost`."""
    with ThreadPoolExecutor(len(peers)) as pool:
        for future in [pool.submit(peer) for peer in peers]:
            error = future.exception(WAIT_S)
            if error is not None and not isinstance(error, Lost):
                raise error


def without_tallies(log: Iterable[str]) -> list[str]:
    """The meetings that a reader cares for, `reduce/0` as `reduce`."""
    return [kind.removesuffix("/0") for kind in log if kind != "tally"]
