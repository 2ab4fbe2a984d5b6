"""`sync_state` in the I/O thread: fetch or serve what was elected, then publish it.

Does what the machine orders; decides only in which thread memory is copied.
"""

import logging
from collections.abc import Callable

import trio

from ringhaul.core.peer import steps
from ringhaul.core.peer.steps import Event
from ringhaul.io.buffers import describe_shortage
from ringhaul.io.calls import SyncCall
from ringhaul.io.hashing import publish
from ringhaul.io.neighbours import Neighbours
from ringhaul.io.progress import Progress
from ringhaul.io.state_fetch import Fetcher, FetchError, Fetching
from ringhaul.io.state_serve import StateServer
from ringhaul.state.content import Stage, own_stage
from ringhaul.wire.coordinator_messages import Outcome, SyncPlan

logger = logging.getLogger(__name__)

#: A transfer that takes longer than the first is told of, again and again.
_FIRST_REPORT_S = 1.0
_NEXT_REPORT_S = 10.0
#: More than this is copied in a thread of its own, so that the I/O loop goes on.
_COPIED_HERE_BYTES_MAX = 1 << 20


class SyncRunner:
    """All open `sync_state` calls of one peer."""

    def __init__(
        self,
        nursery: trio.Nursery,
        neighbours: Neighbours,
        states: StateServer,
        step: Callable[[Event], None],
    ) -> None:
        self._nursery = nursery
        self._neighbours = neighbours
        self._states = states
        self._step = step

    def follow(self, call: SyncCall, plan: SyncPlan) -> None:
        """Something was elected: fetch it, or serve it."""
        call.plan = plan
        if call.stage is not None and call.stage.digest != plan.digest:
            call.stage = None
        if plan.holders:
            call.fetching = trio.CancelScope()
            self._nursery.start_soon(self._fetch, call, plan, call.fetching)
            return
        if call.stage is None and call.content.digest == plan.digest:
            call.stage = own_stage(call.content)
        if call.stage is None or not call.stage.is_whole:
            detail = "was taken for a holder of what it does not have"
            self._step(steps.CallGivenUp(call.id, Outcome.FAILED, detail))
            return
        if plan.requesters:
            self._serve(call, plan, call.stage)
        self._step(steps.TransferDone(call.id, plan.generation, plan.digest))

    def _serve(self, call: SyncCall, plan: SyncPlan, stage: Stage) -> None:
        call.served = self._states.serve(plan, stage, call.upload_bytes_per_s)

    async def _fetch(self, call: SyncCall, plan: SyncPlan, scope: trio.CancelScope) -> None:
        def on_stage(stage: Stage) -> None:
            call.stage = stage
            self._serve(call, plan, stage)

        def on_arrived() -> None:
            if call.served is not None:
                call.served.announce()

        fetching = Fetching(
            plan=plan,
            content=call.content,
            own=self._neighbours.peer_id,
            run_id=self._neighbours.run_id,
            dialable=self._neighbours.addresses_of,
            system=self._neighbours.system,
            progress=call.progress,
            on_stage=on_stage,
            on_arrived=on_arrived,
        )
        event: steps.TransferDone | steps.CallGivenUp
        with scope:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_report, call.progress)
                    await Fetcher(fetching, call.stage).run()
                    nursery.cancel_scope.cancel()
                event = steps.TransferDone(call.id, plan.generation, plan.digest)
            except* FetchError as group:
                detail = f"no source gave the elected state: {group.exceptions[0]}"
                event = steps.CallGivenUp(call.id, Outcome.NO_STATE, detail)
            except* MemoryError as group:
                detail = describe_shortage(_first(group))
                event = steps.CallGivenUp(call.id, Outcome.FAILED, detail)
            if call.plan is plan:  # else the attempt has ended
                self._step(event)

    def release(self, call: SyncCall) -> None:
        """An attempt ended: nobody is served any more; what was fetched is kept."""
        call.received_bytes = call.progress.received_bytes  # of all attempts
        if call.plan is None:
            return
        if call.served is not None:
            call.sent_bytes += call.served.sent_bytes
            call.served = None
        self._states.end(call.plan)
        call.plan = None
        if call.fetching is not None:
            call.fetching.cancel()
            call.fetching = None

    def complete(self, call: SyncCall, end: Callable[[BaseException | None], None]) -> None:
        """The verdict is that all have it: publish it, then `end`."""
        assert call.plan is not None
        assert call.stage is not None
        call.revision = call.plan.revision
        self.release(call)
        if call.stage.needed_bytes > _COPIED_HERE_BYTES_MAX:
            self._nursery.start_soon(self._publish_in_thread, call, call.stage, end)
            return
        try:
            call.state.publish(call.stage, call.revision)
        except ValueError as error:  # the caller made an array read-only meanwhile
            end(error)
        else:
            end(None)

    async def _publish_in_thread(
        self, call: SyncCall, stage: Stage, end: Callable[[BaseException | None], None]
    ) -> None:
        problem: ValueError | None = None
        with trio.CancelScope(shield=True):
            try:
                await self._neighbours.system.run_in_thread(
                    publish, call.state, stage, call.revision
                )
            except ValueError as error:
                problem = error
        end(problem)


def _first(error: MemoryError | ExceptionGroup[MemoryError]) -> MemoryError:
    """Nurseries wrap it in groups, one around the other."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


async def _report(progress: Progress) -> None:
    """Say in the log how far a long transfer is."""
    await trio.sleep(_FIRST_REPORT_S)
    while True:
        logger.info("%s", progress)
        await trio.sleep(_NEXT_REPORT_S)
