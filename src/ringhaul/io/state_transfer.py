"""Shared state on the way from a holder to a peer that differs, into a private buffer.

Executes a `SyncPlan`. What arrives is verified by its digest before anybody uses it.
"""

from collections.abc import Callable, Sequence

import trio

from ringhaul import limits
from ringhaul.ids import PeerId
from ringhaul.io.dial import DialError, reach
from ringhaul.io.sockets import DataSocket, StreamEnded
from ringhaul.wire.codec import Envelope
from ringhaul.wire.coordinator_messages import SyncPlan
from ringhaul.wire.peer_messages import StateOffer, StateRequest
from ringhaul.wire.records import Address, Ticket


class StateServer:
    """Answers requests for the states that open `sync_state` calls hold."""

    def __init__(self) -> None:
        self._plans: dict[tuple[int, object], tuple[SyncPlan, Sequence[memoryview]]] = {}
        self._changed = trio.Event()
        self.sent_bytes = 0

    def serve(self, plan: SyncPlan, views: Sequence[memoryview]) -> None:
        """Serve the caller's arrays until `end`."""
        self._plans[plan.generation, plan.key] = (plan, views)
        self._changed.set()
        self._changed = trio.Event()

    def end(self, plan: SyncPlan) -> None:
        """The call is over: its arrays are the caller's again."""
        self._plans.pop((plan.generation, plan.key), None)

    async def find(self, request: StateRequest) -> SyncPlan | None:
        """Wait until the requested state is served here; None if the token is wrong.

        The caller bounds the wait.
        """
        at = (request.generation, request.key)
        while at not in self._plans:
            await self._changed.wait()
        plan, _ = self._plans[at]
        asked = (request.requester, request.token)
        return plan if asked in [(t.peer, t.token) for t in plan.requesters] else None

    async def send(self, request: StateRequest, plan: SyncPlan, sock: DataSocket) -> None:
        """Send the state, for as long as its call lasts and the requester takes it."""
        at = (plan.generation, plan.key)
        if at not in self._plans:
            return
        _, views = self._plans[at]
        proof = next(t.proof for t in plan.requesters if t.peer == request.requester)
        size = sum(len(view) for view in views)
        await sock.send_message(Envelope(message=StateOffer(proof=proof, state_bytes=size)))
        for view in views:
            for start in range(0, len(view), limits.STATE_BLOCK_BYTES):
                if at not in self._plans:
                    return  # the call ended while we sent
                block = bytes(view[start : start + limits.STATE_BLOCK_BYTES])
                with trio.move_on_after(limits.SILENCE_IDLE_S) as scope:
                    await sock.send_all(block)
                if scope.cancelled_caught:
                    return  # the requester takes nothing
                self.sent_bytes += len(block)
                await trio.lowlevel.checkpoint()


class FetchError(Exception):
    """No holder gave the elected state; says what happened at each."""


async def fetch_state(
    plan: SyncPlan,
    *,
    own: PeerId,
    run_id: bytes,
    state_bytes: int,
    dialable: Callable[[Ticket], list[Address]],
    verify: Callable[[bytearray], bool],
) -> tuple[bytearray, PeerId]:
    """Ask the holders one after the other; return the state and who gave it.

    Raises:
        FetchError: none of them gave it whole and with the right digest.
    """
    failures = []
    for ticket in plan.holders:
        hello = StateRequest(
            version=limits.PROTOCOL_VERSION,
            requester=own,
            holder=ticket.peer,
            generation=plan.generation,
            key=plan.key,
            token=ticket.token,
        )
        try:
            envelope = Envelope(message=hello, run_id=run_id)
            # the holder may come to the call later than we do, but it has the plan
            reached = await reach(dialable(ticket), envelope, ticket.proof, limits.HANDSHAKE_S)
        except DialError as error:
            failures.append(f"{ticket.peer}: {error.reason}")
            continue
        try:
            buffer = await _receive(reached.sock, reached.answer, state_bytes)
            if await trio.to_thread.run_sync(verify, buffer):
                return buffer, ticket.peer
            failures.append(f"{ticket.peer}: sent a state of another digest")
        except StreamEnded as error:
            failures.append(f"{ticket.peer}: {error}")
        finally:
            reached.sock.close()
    raise FetchError("; ".join(failures) or "no holder was named")


async def _receive(sock: DataSocket, offer: object, state_bytes: int) -> bytearray:
    if not isinstance(offer, StateOffer) or offer.state_bytes != state_bytes:
        raise StreamEnded("offers a state of another size")
    buffer = bytearray(state_bytes)
    view = memoryview(buffer)
    filled = 0
    while filled < state_bytes:
        end = min(filled + limits.STATE_BLOCK_BYTES, state_bytes)
        count = sock.receive_nowait((view[filled:end],))
        if count == 0:
            with trio.move_on_after(limits.SILENCE_BUSY_S) as scope:
                await sock.wait_readable()
            if scope.cancelled_caught:
                raise StreamEnded(f"sent nothing for {limits.SILENCE_BUSY_S:g} s")
        else:
            await trio.lowlevel.checkpoint()
        filled += count
    return buffer
