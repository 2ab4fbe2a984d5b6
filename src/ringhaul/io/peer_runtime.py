"""Drives a peer's machine in a background thread: sockets, clock and callers.

Decides nothing about the protocol: events go in, effects are done.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import trio

from ringhaul import limits
from ringhaul.core.peer import steps
from ringhaul.core.peer.machine import Peer, PeerOptions
from ringhaul.core.peer.steps import Effect, Event, View
from ringhaul.core.steps import Close, LinkLost, Log, Received, Send, Tick
from ringhaul.errors import ClosedError, ConnectError, RinghaulError
from ringhaul.ids import LinkId, PeerId
from ringhaul.io.call_runner import CallRunner
from ringhaul.io.calls import PendingCall
from ringhaul.io.dial import describe_failure
from ringhaul.io.link import MessageLink
from ringhaul.io.listener import Listener
from ringhaul.io.logs import log_effect
from ringhaul.io.plane import DataPlane
from ringhaul.io.reactor import Mailbox
from ringhaul.io.signals import Signal
from ringhaul.io.sockets import DataSocket, close_on_fork
from ringhaul.io.system import REAL, Listening, System, is_loopback
from ringhaul.texts import printable
from ringhaul.wire.codec import Envelope
from ringhaul.wire.coordinator_messages import Began, Outcome
from ringhaul.wire.records import Address

logger = logging.getLogger(__name__)

#: For the last messages to go out before everything is cancelled.
_FAREWELL_S = 0.5


class PeerRuntime:
    """One peer: a thread with a trio loop. The public methods are for other threads."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        options: PeerOptions,
        streams: int | None,
        listen: tuple[str | None, int],
        advertise: tuple[tuple[str, int | None], ...],
        system: System = REAL,
    ) -> None:
        self.system = system
        self._host, self._port = host, port
        self._streams = streams
        self._listen = listen
        self._advertise = advertise
        self._options = options
        self.peer_id = PeerId("")
        self.view: View | None = None
        self.joined = Signal()
        self.stopped = threading.Event()
        #: The last that the thread does.
        self.ended = Signal()
        self.error: RinghaulError | None = None
        self._calls = CallRunner(self._step)
        self._events: deque[Event] = deque()
        self._is_stepping = False
        #: Nothing runs any more that an event could have done: calls end with the thread.
        self._is_over = False
        self._links: dict[LinkId, MessageLink] = {}
        self._link_count = 0
        #: Reentrant: a communicator may be garbage-collected wherever this thread is.
        self._lock = threading.RLock()
        self._is_unwanted = False
        self._mailbox: Mailbox | None = None
        self._thread = threading.Thread(target=self._run_thread, name="ringhaul", daemon=True)

    # -- for callers' threads -----------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect; `joined` or `stopped` will be set."""
        self._thread.start()

    def submit(self, call: PendingCall) -> None:
        """Hand over a call; its `ended` will be set, whatever happens.

        Raises:
            ValueError: another call has what it needs for itself; it has ended.
        """
        try:
            call.claim()
        except BaseException as error:
            call.end(error=error)
            raise
        if not self._post(lambda: self._calls.on_submitted(call)):
            call.end(error=self._closed_error())

    def give_up(self, call: PendingCall, detail: str) -> None:
        """Ask for the end of a call; `ended` will be set by its verdict.

        The caller may have been interrupted before the call was handed over.
        """

        def act() -> None:
            if call.id in self._calls:
                event = steps.CallGivenUp(call.id, Outcome.INTERRUPTED, printable(detail))
                self._step(event)
            else:
                call.end(error=ClosedError("interrupted before it began"))

        if not self._post(act):
            call.end(error=self._closed_error())

    def end_batch(self, failed: Callable[[], steps.BatchFailed]) -> None:
        """Tell that a batch ends early; before any call that is handed over later.

        `failed` is asked in the I/O thread, when all that were handed over before are known.
        """
        self._post(lambda: self._step(failed()))

    def check_open(self) -> None:
        """Raise what a call would end with if the communicator is closed."""
        if self.stopped.is_set():
            raise self._closed_error()

    def close(self, wait_s: float = limits.GOODBYE_S + 3.0) -> None:
        """Leave in an orderly way; returns when the thread has ended, or after `wait_s`."""
        with self._lock:
            self._is_unwanted = True
        self._post(lambda: self._step(steps.CloseCalled()))
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(wait_s)

    def abandon(self) -> None:
        """End at once, without goodbye: the caller cannot wait."""
        self._post(lambda: self._on_stop(ClosedError("abandoned by its caller")))

    def _post(self, act: Callable[[], None]) -> bool:
        mailbox = self._mailbox
        return mailbox is not None and mailbox.post(act)

    def _closed_error(self) -> RinghaulError:
        if self.error is not None:
            return type(self.error)(f"the communicator is closed: {self.error}")
        return ClosedError("the communicator is closed")

    # -- the thread ---------------------------------------------------------------------------

    def _run_thread(self) -> None:
        np.seterr(all="ignore")  # sums overflow to infinity; once, not per segment
        try:
            trio.run(self._main)
        except BaseException as error:
            self._note_bug(error)
        finally:
            self._end()

    async def run_here(self) -> None:
        """Be the peer in an event loop of the caller's, instead of `start`, until it has ended.

        Cancelling ends it at once, as if the process had been killed.
        """
        try:
            await self._main()
        except Exception as error:
            self._note_bug(error)
        finally:
            self._end()

    def _note_bug(self, error: BaseException) -> None:
        """Callers must not wait for ever."""
        logger.error("the I/O thread ended", exc_info=error)
        bug = RinghaulError(f"a bug of ringhaul, please report it: {error!r}")
        bug.__cause__ = error
        self.error = self.error or bug

    def _end(self) -> None:
        self.stopped.set()
        self._calls.end_all(self.error)
        self.joined.set()
        self.ended.set()

    async def _main(self) -> None:
        try:
            listening = close_on_fork(self.system.listen(*self._listen))
        except OSError as error:
            host, port = self._listen
            where = Address(host, port) if host else f"port {port} of all interfaces"
            self.error = ConnectError(f"cannot listen at {where}: {error}")
            return
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._link_ended = trio.Event()
                self.plane = DataPlane(
                    nursery=nursery,
                    report=self._step,
                    streams=self._streams,
                    coordinator_host=self._host,
                    system=self.system,
                )
                self._calls.open(nursery, self.plane)
                listener = Listener(
                    listening, self.plane.neighbours, self._calls.states, self.system
                )
                self._machine = Peer(await self._find_addresses(listening))
                nursery.start_soon(self.plane.run)
                nursery.start_soon(listener.run, nursery)
                nursery.start_soon(self._keep_time)
                with self._lock:
                    self._mailbox = Mailbox(self.plane.reactor)
                self._step(steps.Started())
                if self._is_unwanted:  # closed before there was a token to post with
                    self._step(steps.CloseCalled())
                await trio.sleep_forever()
        finally:
            self._is_over = True
            listening.close()
            if self._mailbox is not None:
                self._mailbox.close()
            if hasattr(self, "plane"):
                self.plane.close()

    async def _find_addresses(self, listening: Listening) -> PeerOptions:
        """Explicit addresses first, then those of this machine."""
        port = int(listening.getsockname()[1])
        own = [self._listen[0]] if self._listen[0] not in (None, "", "0.0.0.0", "::") else []
        hosts = own or await self.system.local_hosts()
        found = [Address(host, port) for host in hosts if host] or [Address("127.0.0.1", port)]
        explicit = [Address(host, port if at is None else at) for host, at in self._advertise]
        merged = tuple(dict.fromkeys([*explicit, *found]))[: limits.ADDRESSES_MAX - 1]
        return replace(self._options, addresses=merged)

    # -- the machine --------------------------------------------------------------------------

    def _step(self, event: Event) -> None:
        """Feed one event; effects may cause more, which wait for their turn."""
        if self._is_over:
            return
        self._events.append(event)
        if self._is_stepping:
            return
        self._is_stepping = True
        try:
            while self._events:
                for effect in self._machine.step(self._events.popleft(), trio.current_time()):
                    self._do(effect)
        finally:
            self._is_stepping = False
        deadline = self._machine.next_deadline()
        if deadline != self._timer.deadline:
            self._timer.deadline = deadline

    _timer = trio.CancelScope()

    async def _keep_time(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._machine.next_deadline()) as self._timer:
                await trio.sleep_forever()
            self.plane.reactor.handle_ready()  # it is read before silence is judged
            if (now := trio.current_time()) >= self._machine.next_deadline():
                self._step(steps.LinkMeasured(self.plane.neighbours.measure_sent(now)))
                self._step(Tick())

    def _do(self, effect: Effect) -> None:
        match effect:
            case Send(link, envelope):
                can_wait = isinstance(envelope.message, Began)  # `Finished` may follow soon
                self._links[link].send_nowait(envelope, can_wait=can_wait)
            case Close(link, reason):
                if link in self._links:
                    self._links[link].close_nowait(reason)
            case Log():
                log_effect(logger, effect)
            case steps.Dial():
                self._nursery.start_soon(self._dial_coordinator)
            case steps.MakeLinks(proposal):
                self.plane.neighbours.make_links(proposal)
            case steps.UseRing(generation):
                self.plane.use_ring(generation)
            case steps.ForgetKey(key):
                self.plane.forget(key)
            case steps.Joined(view):
                self.peer_id = self._machine.state.peer_id
                self.view = view
                self.joined.set()
            case steps.Stop(error):
                self._on_stop(error)
            case _:
                self._calls.do(effect)

    def _on_stop(self, error: RinghaulError | None) -> None:
        self.error = self.error or error
        self._calls.release_all()
        for link in self._links.values():
            link.close_nowait("stopped")
        self._nursery.start_soon(self._cancel_soon)

    async def _cancel_soon(self) -> None:
        """Let the last messages out before everything is cancelled."""
        with trio.move_on_after(_FAREWELL_S):
            while self._links:
                await self._link_ended.wait()
        self._nursery.cancel_scope.cancel()

    async def _dial_coordinator(self) -> None:
        try:
            with trio.fail_after(limits.COORDINATOR_DIAL_S):
                raw = await self.system.connect_fastest(self._host, self._port)
        except trio.TooSlowError:
            self._step(steps.DialFailed(f"no answer within {limits.COORDINATOR_DIAL_S:g} s"))
            return
        except (OSError, ValueError) as error:  # ValueError: no name can be like this
            self._step(steps.DialFailed(describe_failure(error)))
            return
        sock = DataSocket(raw, self.system)
        self.plane.neighbours.own_host_is_loopback = is_loopback(sock.own_host())
        self._link_count += 1
        link_id = LinkId(self._link_count)
        link = MessageLink(sock, self.plane.reactor)
        self._links[link_id] = link
        self._step(steps.Dialled(link_id))

        def handle(envelope: Envelope) -> None:
            self._step(Received(link_id, envelope))
            self.plane.neighbours.identify(self._machine.state.peer_id, self._machine.state.run_id)

        reason = await link.run(handle)
        del self._links[link_id]
        self._link_ended.set()
        self._link_ended = trio.Event()
        self._step(LinkLost(link_id, reason))
