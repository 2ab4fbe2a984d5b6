"""What all training loops have in common: averages in flight, outer steps, rounds.

When a round ends, and what of the outer parameters goes back to the inner ones, is decided in
`sync.py`, `delayed.py` and `streaming.py`; what is shared, and how newcomers get it, in
`run_state.py`.

The order of collectives is a contract between old members and newcomers. A newcomer's
`connect` returns where the members' `admit` does; both sync, and both then post the averages
that the shared state says are to be posted (a newcomer with nothing in them):

    old member     ... wait, outer step, admit, sync_state, post, inner steps, wait ...
    newcomer                 connect,           sync_state, post, inner steps, wait ...

Nothing is in flight at a sync: members wait for what they have posted before they admit. They
know from the verdicts whether anybody is pending, the same on all. Everything else is a
function of the position in the schedule, which is in the shared state.

Errors: what is due stands on an agenda. A task that raises stays on it, and the next `step`
goes on there, so nothing is done twice or left out. One gap is known: after an interrupt of
`admit` or `sync_state` nobody here can tell whether it was committed. Connect anew then.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from ringhaul.arguments import parse_inner_steps
from ringhaul.diloco.averaging import NOTHING, Average, Contribution, Flight
from ringhaul.diloco.exact import norm
from ringhaul.diloco.gradients import clear_unfit, is_finite, subtract, unfit_name
from ringhaul.diloco.members import Collectives, collectives_of
from ringhaul.diloco.outer import FloatArray, OuterOptimizer, nesterov, optimizer_of
from ringhaul.diloco.parameters import Layout, ParameterStore, store_of
from ringhaul.diloco.results import RoundInfo
from ringhaul.diloco.run_state import RunState, RunView
from ringhaul.diloco.slot import Slot, parse_weight
from ringhaul.errors import CodecError, CollectiveAborted
from ringhaul.quant import Codec, find_codec

logger = logging.getLogger(__name__)

Params = Mapping[str, NDArray[np.floating]] | ParameterStore
Task = Callable[[], None]
Buffers = Mapping[str, FloatArray]


class OuterLoop(RunView):
    """Base of the three loops; `DiLoCo` says what their common arguments mean."""

    def __init__(
        self,
        comm: Collectives,
        params: Params,
        inner_steps: int,
        *,
        optimizer: OuterOptimizer | None = None,
        codec: str | Codec = "raw",
        timeout_s: float | None = None,
        max_seconds_per_round: float | None = None,
        resume: Mapping[str, Any] | None = None,
        fragments: Sequence[Sequence[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_seconds_per_round is not None and not max_seconds_per_round > 0.0:
            raise ValueError(f"max_seconds_per_round is {max_seconds_per_round}, not above 0")
        self.inner_steps = parse_inner_steps(inner_steps)
        self.max_seconds_per_round = max_seconds_per_round
        self.optimizer = optimizer_of(optimizer, nesterov())
        self._comm = collectives_of(comm)
        self._store = store_of(params)
        self._codec = find_codec(codec)
        self._timeout_s = timeout_s
        self._clock = clock
        self._layout = Layout(self._store.shapes, fragments, self._store.averaged)
        self._run = RunState(comm, self._store, self._layout, self.optimizer, timeout_s)
        if resume is not None:
            self._run.load(resume)
        self._pseudo_gradient = self._store.allocate(self._run.outer.size)
        self._average = np.zeros_like(self._run.outer)

        #: By fragment: what is to be posted; what is on its way; what is here.
        self._captured: dict[int, Contribution] = {}
        self._flights: dict[int, Flight] = {}
        self._arrived: dict[int, tuple[Contribution, Average]] = {}
        #: Members were too few: an admission has to come before anything is posted again.
        self._regroup_due = False
        self._agenda: list[Task] = []
        #: This peer's since each fragment was captured.
        self._fragment_weights = np.zeros(self._layout.fragment_count)
        self._info: RoundInfo | None = None

        self._run.sync_if_due()
        self._target = self.position
        self._step_began_at = self._clock()
        self._slot = Slot(began_at=self._step_began_at)
        self._load_all()
        self._post_marked()

    # -- what the caller may ask --------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """A checkpoint for `resume=`: copies of the shared arrays by name, and a revision.

        Take it between steps. Averages on their way are not in it: a run that is restarted
        goes on without them. The inner optimizer is the caller's to save.
        """
        return {**self._run.state_dict(), "optimizer": self.optimizer.state_dict()}

    def step(self, weight: SupportsFloat = 1.0) -> RoundInfo | None:
        """Count one inner step; at the end of a round do what all members do then.

        Args:
            weight: what this inner step counts in the average: the tokens of its batch, say.
                A number, NumPy's or a tensor of one element too, finite and above 0. Codec
                "fp16" overflows at 65504: use thousands of tokens.

        Returns:
            None within a round; at its end what happened.

        Raises:
            CallTimeout: `timeout_s` passed, on all members. Call `step` again: it goes on
                where it stopped, and does not count an inner step.
            TypeError, ValueError: an entry of `params` changed its dtype or shape; likewise.
            RinghaulError: as the communicator raises it; a lost member is no error.
        """
        self._step_began_at = self._clock()
        if not self._agenda:
            counted = parse_weight(weight)
            boundary = self._next_boundary(self.position)
            self._target = boundary if self._is_time_up() else min(self.position + 1, boundary)
            self._slot.inner_steps += 1
            self._slot.weight += counted
            self._fragment_weights += counted
        while self._agenda or self.position < self._target:
            if not self._agenda:
                event = self._next_event(self.position)
                self._run.position[0] = min(event, self._target)
                if self.position == event:
                    self._store.flush()
                    self._agenda = self._tasks()
            while self._agenda:
                self._agenda[0]()
                self._agenda.pop(0)
        info, self._info = self._info, None
        return info

    def finish(self) -> None:
        """The end of training, on all members: wait for what is on its way, step along it.

        Call it directly after a step that returned a `RoundInfo`, on all members at the same
        one. The parameters are the outer ones then, the same bits on all members.

        Raises:
            RinghaulError: as `step`. Call it again.
        """
        for fragment in sorted({*self._flights, *self._arrived}, key=self._posting_order):
            self._settle(fragment)
        for fragment in range(self._layout.fragment_count):
            OuterLoop._load(self, fragment)
        self._store.flush()

    def _is_time_up(self) -> bool:
        if self.max_seconds_per_round is None:
            return False
        slot_s = self.max_seconds_per_round / self._layout.fragment_count
        return self._clock() - self._slot.began_at >= slot_s

    # -- the schedule: what differs -----------------------------------------------------------

    def _next_boundary(self, position: int) -> int:
        """The first position after `position` at which a round ends."""
        return (position // self.inner_steps + 1) * self.inner_steps

    def _next_event(self, position: int) -> int:
        """The first position after `position` at which anything is due."""
        return self._next_boundary(position)

    def _tasks(self) -> list[Task]:
        """What is due at this position, an event; called once when it is reached."""
        raise NotImplementedError

    def _reference(self, part: slice) -> FloatArray:
        """What the inner parameters are subtracted from."""
        return self._run.outer[part]

    def _step_along(self, fragment: int, gradient: FloatArray, length: float) -> None:
        """One outer step of `fragment` along its average, of norm `length`."""
        part = self._layout.parts[fragment]
        buffers = {name: buffer[part] for name, buffer in self._run.buffers.items()}
        self._optimize(fragment, self._run.outer[part], gradient, buffers)

    def _optimize(
        self, fragment: int, values: FloatArray, gradient: FloatArray, buffers: Buffers
    ) -> None:
        """Step what the optimizer steps; the rest goes to its average."""
        stepped = slice(0, self._layout.stepped_counts[fragment])
        number = int(self._run.outer_steps[fragment])
        parts = {name: buffer[stepped] for name, buffer in buffers.items()}
        self.optimizer.step(values[stepped], gradient[stepped], parts, max(number, 1))
        rest = values[stepped.stop :]
        np.subtract(rest, gradient[stepped.stop :], out=rest)

    def _on_outer_step(self, fragment: int) -> None:
        """The outer parameters of `fragment` are new."""

    def _wants_admission(self) -> bool:
        """Is it time to let peers in? The same answer on all members.

        Verdicts say how many are pending, the same to all members of a group; members of
        different groups may have heard different numbers, so with several all always vote.
        """
        return self._comm.pending_peers > 0 or self._comm.group_count > 1

    # -- tasks --------------------------------------------------------------------------------

    def _capture(self, fragment: int) -> None:
        """Pseudo-gradient := outer minus inner parameters, times this peer's weight."""
        part = self._layout.parts[fragment]
        values = self._pseudo_gradient[part]
        names = self._layout.names[fragment]
        self._store.read(names, values)
        reference = self._reference(part)
        if self._store.is_rounding:
            reference = reference.copy()
            self._store.round(names, reference)
        scale = float(self._fragment_weights[fragment]) / self.inner_steps
        subtract(reference, values, out=values)
        if scale != 1.0:
            with np.errstate(all="ignore"):
                np.multiply(values, scale, out=values)
        weight, inner_steps = self._slot.weight, self._slot.inner_steps
        contribution = Contribution(scale=scale, weight=weight, inner_steps=inner_steps)
        if not self._is_sound(fragment, values):
            values[:] = 0.0
            contribution = NOTHING
            self._reject()
        self._captured[fragment] = contribution
        self._fragment_weights[fragment] = 0.0

    def _is_sound(self, fragment: int, values: FloatArray) -> bool:
        """May these pseudo-gradients be given to the others? Entries of running means may not."""
        if is_finite(values):
            return True
        name = unfit_name(self._layout, fragment, self._pseudo_gradient)
        stepped_count = self._layout.stepped_counts[fragment]
        if not is_finite(values[:stepped_count]):
            logger.warning("%r is not finite: this peer gives nothing this round", name)
            return False
        if clear_unfit(values[stepped_count:]):
            logger.warning("%r is not finite: it stays as it is in the run", name)
        return True

    def _post(self, fragment: int) -> None:
        """Send what was captured on its way; once, also if an earlier call has begun it."""
        if fragment in self._captured:
            part = self._layout.parts[fragment]
            self._flights[fragment] = Flight(
                self._comm,
                self._pseudo_gradient[part],
                self._average[part],
                self._captured[fragment],
                codec=self._codec,
                tag=f"diloco/{fragment}",
                timeout_s=self._timeout_s,
            )
            del self._captured[fragment]
        self._flights[fragment].post()

    def _post_marked(self) -> None:
        """A newcomer takes part in what the members post after its sync, with nothing in it."""
        marked = [int(fragment) for fragment in np.flatnonzero(self._run.posted_at)]
        for fragment in sorted(marked, key=self._posting_order):
            self._captured[fragment] = NOTHING
            self._post(fragment)

    def _posting_order(self, fragment: int) -> tuple[int, int]:
        return int(self._run.posted_at[fragment]), fragment

    def _wait(self, fragment: int) -> None:
        """Wait for the average of `fragment`, however often members have to regroup."""
        began_at = self._clock()
        while fragment in self._flights:
            self._regroup_if_due()
            flight = self._flights[fragment]
            try:
                average = flight.wait()
            except CollectiveAborted:
                self._regroup_due = True
            except CodecError as error:
                self._leave_out(flight, error)
            else:
                del self._flights[fragment]
                self._arrived[fragment] = (flight.contribution, average)
        self._slot.wait_s += self._clock() - began_at

    def _leave_out(self, flight: Flight, error: CodecError) -> None:
        """The codec cannot carry what some peer gives: it gives nothing, and all post again."""
        if flight.leave_out(error, self._comm.peer_id):
            logger.warning("this peer gives nothing this round: %s", error)
            self._reject()

    def _reject(self) -> None:
        """What this peer has learned may not be given to the others."""
        self._slot.rejected = True

    def _apply(self, fragment: int) -> None:
        """Step along the average of `fragment`, if it is here."""
        if fragment not in self._arrived:
            return
        contribution, average = self._arrived.pop(fragment)
        gradient = self._average[self._layout.parts[fragment]]
        length = 0.0
        self._run.posted_at[fragment] = 0
        if average.scale > 0.0:
            length = norm(gradient)
            self._run.outer_steps[fragment] += 1
            self._step_along(fragment, gradient, length)
            self._run.round += 1
            self._run.inner_steps += average.inner_steps
            self._run.weight += average.weight
            self._on_outer_step(fragment)
        self._slot.fragment, self._slot.length = fragment, length
        self._slot.contribution, self._slot.average = contribution, average

    def _settle(self, fragment: int) -> None:
        self._wait(fragment)
        self._apply(fragment)

    def _admit(self, marked: Sequence[int] = ()) -> None:
        """Let waiting peers in, if there are any, and give them the state.

        `marked` fragments are posted next, by newcomers too.
        """
        self._regroup_if_due()
        if not self._run.is_sync_due:
            if self._wants_admission():
                self._run.admitting[0] = 1
            if self._run.admitting[0]:
                in_flight = {*self._flights, *self._arrived}
                for fragment in sorted(in_flight, key=self._posting_order):
                    self._settle(fragment)
            self._run.posted_at[list(marked)] = self.position
            if not self._run.admitting[0]:
                return
        self._slot.has_admitted |= self._run.admit(is_planned=True)

    def _regroup_if_due(self) -> None:
        """Members were too few (`min_world_size`): wait in `admit`, sync, post again.

        What was in flight has ended on all members alike. What was committed is stepped along
        first, so that newcomers get it with the state; the rest is posted again, by newcomers
        with nothing in it. They stand just before this position: they have what is due at it
        before them, as the members have.
        """
        if not self._regroup_due:
            return
        for fragment, flight in list(self._flights.items()):
            if not flight.is_posted:
                continue
            try:
                average = flight.wait()
            except CollectiveAborted:
                continue
            except CodecError as error:
                self._leave_out(flight, error)
                continue
            del self._flights[fragment]
            self._arrived[fragment] = (flight.contribution, average)
        for fragment in sorted(self._arrived, key=self._posting_order):
            self._apply(fragment)
        position = self.position
        self._run.position[0] = position - 1
        try:
            self._slot.has_admitted |= self._run.admit(is_planned=False)
        finally:
            self._run.position[0] = position
        self._regroup_due = False
        for flight in self._flights.values():
            flight.post()

    # -- the inner parameters, and the end of a round -----------------------------------------

    def _load(self, fragment: int) -> None:
        """Inner parameters := outer parameters."""
        outer = self._run.outer[self._layout.parts[fragment]]
        self._store.write(self._layout.names[fragment], outer)

    def _load_all(self) -> None:
        for fragment in range(self._layout.fragment_count):
            self._load(fragment)

    def _end_slot(self) -> None:
        """The end of a round: say how it went."""
        now = self._clock()
        self._info = self._slot.info(self.round, self.position, now - self._step_began_at)
        self._slot = Slot(began_at=now)
