"""Streaming DiLoCo (arXiv 2501.18512): the model is averaged a fragment at a time, in passing.

Decides the schedule, a function of the run's position alone. In every `inner_steps` positions
each fragment is posted once, at even distances; its average is stepped along `overlap` inner
steps later, and mixed into the inner parameters. A newcomer gets the position with the state,
and is let in where a fragment is posted, after all that was in flight has been stepped along.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ringhaul.diloco.gradients import clear_unfit, subtract
from ringhaul.diloco.loop import OuterLoop, Params, Task
from ringhaul.diloco.members import Collectives
from ringhaul.diloco.outer import OuterOptimizer
from ringhaul.diloco.parameters import store_of, strided_fragments
from ringhaul.quant import Codec


class StreamingDiLoCo(OuterLoop):
    """`DiLoCo` that spreads its communication evenly over the inner steps.

    Peak bandwidth falls by the number of fragments, and `overlap` inner steps hide the rest.
    A "round" here is from the posting of one fragment to the posting of the next: `step`
    returns a `RoundInfo` `fragments` times in `inner_steps` calls, and takes peers in there.

    Memory: as `DiLoCo`.

    Args:
        comm: as for `DiLoCo`, and all that follows.
        params: as there.
        inner_steps: between two averages of the same fragment.
        fragments: how many; cut by layers, strided over the depth (`strided_fragments`). Or
            the names in each, the same on all members.
        overlap: inner steps from the posting of a fragment to its outer step, 0 to
            `inner_steps` - 1 (the paper's tau; up to 10 costs little).
        mixing: share of the inner parameters that stays when the outer ones come, 0 to 1 (the
            paper's alpha): inner := mixing * inner + (1 - mixing) * outer. Try 0, too: in
            `bench/diloco.py`, a small model and 20 inner steps, 0.5 costs 2.7 %.
        optimizer: as there.
        codec: as there; "uint4" costs nothing in the paper (4-bit outer gradients).
        timeout_s: as there.
        max_seconds_per_round: as there, for `inner_steps`; a slow peer leaves out inner steps.
        resume: as there.
        clock: as there.

    Raises:
        ValueError, TypeError: an argument is not as described.
        RinghaulError: as `Communicator.sync_state` raises it.
    """

    def __init__(
        self,
        comm: Collectives,
        params: Params,
        inner_steps: int,
        *,
        fragments: int | Sequence[Sequence[str]] = 4,
        overlap: int = 0,
        mixing: float = 0.5,
        optimizer: OuterOptimizer | None = None,
        codec: str | Codec = "raw",
        timeout_s: float | None = None,
        max_seconds_per_round: float | None = None,
        resume: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        store = store_of(params)
        if isinstance(fragments, int):
            fragments = strided_fragments(store.shapes, fragments)
        count = len(fragments)
        if not count <= inner_steps:
            raise ValueError(f"{count} fragments in {inner_steps} inner steps: one each at most")
        if not 0 <= overlap < inner_steps:
            raise ValueError(f"overlap is {overlap}; it has to be from 0 to {inner_steps - 1}")
        if not 0.0 <= mixing < 1.0:
            raise ValueError(f"mixing is {mixing}; it has to be in [0, 1)")
        self.overlap = overlap
        self.mixing = mixing
        #: Where in `inner_steps` positions each fragment is posted; 1 to `inner_steps`.
        self._offsets = [(index + 1) * inner_steps // count for index in range(count)]
        #: This peer has given nothing, and has not got the outer parameters back.
        self._load_due = False
        super().__init__(
            comm,
            store,
            inner_steps,
            optimizer=optimizer,
            codec=codec,
            timeout_s=timeout_s,
            max_seconds_per_round=max_seconds_per_round,
            resume=resume,
            fragments=fragments,
            clock=clock,
        )

    def _next_boundary(self, position: int) -> int:
        begin = position // self.inner_steps * self.inner_steps
        boundaries = [begin + offset for offset in self._offsets]
        boundaries.append(begin + self.inner_steps + self._offsets[0])
        return next(boundary for boundary in boundaries if boundary > position)

    def _next_event(self, position: int) -> int:
        due = [self._due_at(fragment) for fragment in self._flights]
        return min([self._next_boundary(position), *(at for at in due if at > position)])

    def _due_at(self, fragment: int) -> int:
        return int(self._run.posted_at[fragment]) + self.overlap

    def _tasks(self) -> list[Task]:
        position = self.position
        tasks: list[Task] = []
        for fragment in sorted(self._flights, key=self._posting_order):
            if self._due_at(fragment) <= position:
                tasks += [partial(self._settle, fragment), self._load_if_rejected]
        offset = (position - 1) % self.inner_steps + 1
        if offset not in self._offsets:
            return tasks
        fragment = self._offsets.index(offset)
        tasks += [
            partial(self._admit, [fragment]),
            partial(self._capture, fragment),
            self._load_if_rejected,
            partial(self._post, fragment),
        ]
        if self.overlap == 0:
            tasks += [partial(self._settle, fragment), self._load_if_rejected]
        return [*tasks, self._end_slot]

    def _reject(self) -> None:
        super()._reject()
        self._load_due = True

    def _load_if_rejected(self) -> None:
        """Inner parameters := outer parameters, after this peer gave nothing."""
        if self._load_due:
            self._load_all()
            self._fragment_weights[:] = 0.0  # of inner steps that are undone
            self._load_due = False

    def _on_outer_step(self, fragment: int) -> None:
        """Mix the new outer parameters into the inner ones."""
        if self.mixing == 0.0:
            self._load(fragment)
            return
        names, part = self._layout.names[fragment], self._layout.parts[fragment]
        mixed = self._average[part]  # no longer needed
        self._store.read(names, mixed)
        subtract(mixed, self._run.outer[part], out=mixed)
        clear_unfit(mixed[self._layout.stepped_counts[fragment] :])
        np.multiply(mixed, self.mixing, out=mixed)
        np.add(mixed, self._run.outer[part], out=mixed)
        self._store.write(names, mixed)
