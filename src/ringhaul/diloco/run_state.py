"""The shared state of a training run, and how newcomers get it.

Outer parameters, the outer optimizer's buffers and the counters are equal on all members, bit
for bit, whenever they meet in a sync. What is here decides their names and revisions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ringhaul.diloco.members import Collectives
from ringhaul.diloco.outer import OuterOptimizer
from ringhaul.diloco.parameters import Layout, ParameterStore
from ringhaul.errors import CollectiveAborted
from ringhaul.state.shared import SharedState


class RunState:
    """Outer parameters, buffers, counters; and the calls that keep them equal.

    Attributes:
        shared: arrays `outer/NAME`, `momentum/NAME` (or whatever the optimizer remembers), and
            the counters: `round`, outer steps of the run; `position`, inner steps of its
            schedule; `inner_steps` and `weight`, of all peers together; `admitting`, 1 while
            members have decided to admit and not done so; by fragment `outer_steps`,
            `posted_at` (a position, or 0 if it is not on its way) and `moved`, the length of
            the last outer step where that is needed.
        outer: shape (element_count,), the outer parameters, flat.
        buffers: of the outer optimizer, each like `outer`.
    """

    def __init__(
        self,
        comm: Collectives,
        store: ParameterStore,
        layout: Layout,
        optimizer: OuterOptimizer,
        timeout_s: float | None,
    ) -> None:
        self._comm = comm
        self._timeout_s = timeout_s
        self.outer = store.allocate(layout.element_count)
        for names, part in zip(layout.names, layout.parts, strict=True):
            store.read(names, self.outer[part])
        self.buffers = optimizer.make_buffers(self.outer)
        count = layout.fragment_count
        self.round = np.zeros(1, np.int64)
        self.position = np.zeros(1, np.int64)
        self.inner_steps = np.zeros(1, np.int64)
        self.weight = np.zeros(1, np.float64)
        self.admitting = np.zeros(1, np.int64)
        self.outer_steps = np.zeros(count, np.int64)
        self.posted_at = np.zeros(count, np.int64)
        self.moved = np.zeros(count, np.float64)
        arrays: dict[str, NDArray[Any]] = {
            "round": self.round,
            "position": self.position,
            "inner_steps": self.inner_steps,
            "weight": self.weight,
            "admitting": self.admitting,
            "outer_steps": self.outer_steps,
            "posted_at": self.posted_at,
            "moved": self.moved,
        }
        for prefix, flat in {"outer": self.outer, **self.buffers}.items():
            for name, view in layout.views(flat).items():
                arrays[f"{prefix}/{name}"] = view
        self.shared = SharedState(arrays, revision=0)
        #: Revision of the last committed sync; None before the first.
        self._synced_revision: int | None = None
        #: A newcomer is in the ring that has not got the state; at first, this peer itself.
        self._sync_due = True

    # -- checkpoints --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Copies of the arrays, and a revision that grows with the run."""
        return {
            "arrays": {name: array.copy() for name, array in self.shared.arrays.items()},
            "revision": max(self.shared.revision, int(self.position[0])),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, before the first sync.

        Raises:
            TypeError: it is no checkpoint at all.
            ValueError: it is of another kind of loop, outer optimizer or model; says what
                differs. Nothing has changed.
        """
        arrays = _arrays_of(state)
        if "outer_steps" in arrays:
            _check_fragment_count(np.shape(arrays["outer_steps"]), self.outer_steps.shape)
        _check_names(set(arrays), set(self.shared.arrays))
        for name, array in self.shared.arrays.items():
            if np.shape(arrays[name]) != array.shape:
                raise ValueError(
                    f"{name!r} has shape {tuple(np.shape(arrays[name]))} in the checkpoint and "
                    f"{array.shape} in this run: it is of another model"
                )
        for name, array in self.shared.arrays.items():
            np.copyto(array, arrays[name])
        self.shared.revision = int(state["revision"])
        self.posted_at[:] = 0
        self.admitting[:] = 0

    # -- membership ---------------------------------------------------------------------------

    def admit(self, *, is_planned: bool) -> bool:
        """Let waiting peers in and give them the state. Were there any?

        After an error, call it again. `is_planned`: what `admitting` announces, done now; if
        not, it is still to come, for the newcomers too.
        """
        if not self._sync_due:
            self._sync_due = self._comm.admit(self._timeout_s).admitted
        if is_planned:
            self.admitting[0] = 0
        return self.sync_if_due()

    @property
    def is_sync_due(self) -> bool:
        """Were newcomers admitted that have not got the state?"""
        return self._sync_due

    def sync_if_due(self) -> bool:
        """Meet the newcomers in a sync, once for each admission. Was there one?

        Members come to a sync at the last committed revision plus one, the rule for a content
        that went on; a sync that failed is tried with the same number. Too few members
        (`min_world_size`) abort it on all of them: they wait in `admit` and sync with whoever
        comes.
        """
        if not self._sync_due:
            return False
        if self._synced_revision is not None:
            self.shared.revision = self._synced_revision + 1
        while self._sync_due:
            try:
                info = self._comm.sync_state(self.shared, timeout_s=self._timeout_s)
            except CollectiveAborted:
                self._comm.admit(self._timeout_s)
            else:
                self._synced_revision = info.revision
                self._sync_due = False
        return True


def _arrays_of(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arrays of a checkpoint, which is a mapping that has some, and a revision."""
    if not isinstance(state, Mapping):
        kind = type(state).__name__
        raise TypeError(f"resume is what state_dict() of a training loop returned, not a {kind}")
    arrays = state.get("arrays")
    if not isinstance(arrays, Mapping) or "revision" not in state:
        raise ValueError(
            "resume is what state_dict() of a training loop returned, with 'arrays' and "
            f"'revision'; this has {sorted(map(str, state))[:5]}"
        )
    return arrays


def _check_fragment_count(saved: tuple[int, ...], present: tuple[int, ...]) -> None:
    if saved != present and len(saved) == 1:
        raise ValueError(
            f"the checkpoint is of a run with {saved[0]} fragments, this one has {present[0]}: "
            "resume it with the same kind of loop and as many fragments"
        )


def _check_names(saved: set[str], present: set[str]) -> None:
    """Buffers are named by the optimizer; what else there is follows from the model."""
    missing, surplus = sorted(present - saved), sorted(saved - present)
    if not missing and not surplus:
        return
    kinds = [
        " and ".join(sorted({name.partition("/")[0] for name in names if "/" in name} - {"outer"}))
        for names in (saved, present)
    ]
    text = "it is of another model"
    if kinds[0] != kinds[1]:
        remembered = [kind or "nothing" for kind in kinds]
        text = f"its outer optimizer remembers {remembered[0]}, this one {remembered[1]}"
    raise ValueError(
        f"the checkpoint is not of this run: {text}. Only this run has {missing[:5]}, only the "
        f"checkpoint has {surplus[:5]}"
    )


class RunView:
    """What callers may ask of a run."""

    _run: RunState

    @property
    def state(self) -> SharedState:
        """What is shared, to look at or to save between steps; see `RunState` for the names."""
        return self._run.shared

    @property
    def round(self) -> int:
        """Outer steps in this run so far, also those before this peer came."""
        return int(self._run.round[0])

    @property
    def position(self) -> int:
        """Inner steps of the run's schedule so far; the same on all members at a round's end."""
        return int(self._run.position[0])

    @property
    def inner_steps_done(self) -> int:
        """Inner steps of all peers together that are in the outer parameters."""
        return int(self._run.inner_steps[0])

    @property
    def weight_done(self) -> float:
        """Weight of all peers together in the outer parameters: tokens, if `step` gets those."""
        return float(self._run.weight[0])
