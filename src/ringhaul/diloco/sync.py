"""DiLoCo (arXiv 2311.08105): many local steps, then one all-reduce and one outer step.

Decides the order of a round's collectives:

    old member     ... inner steps, all_reduce, admit, sync_state, inner steps, all_reduce ...
    newcomer                         connect, DiLoCo: sync_state, inner steps, all_reduce ...

A program with collectives of its own keeps the order by placing them directly after the
constructor and directly after each step that returned a `RoundInfo`: there a newcomer and an
old member stand at the same point.
"""

from ringhaul.diloco.loop import OuterLoop, Task
from ringhaul.diloco.results import RoundInfo

__all__ = ["DiLoCo", "RoundInfo"]


class DiLoCo(OuterLoop):
    """Keeps the parameters of all members together while each trains on its own.

    Three lines in a training loop:

        outer = DiLoCo(comm, params, inner_steps=50)
        for batch in batches:
            ...                 # change the arrays of params: an inner step
            outer.step()        # every 50th call averages over all members

    A round ends with: pseudo-gradient = outer minus inner parameters; its average over all
    members, weighted; one step of the outer optimizer along it; inner parameters := outer
    parameters. Then waiting peers are let in and given the state: outer parameters, the
    optimizer's buffers and the counters. All members hold the same bits of it after every
    round. Inner optimizers keep their state across rounds; it is each peer's own.

    A lost member costs the round its contribution and nothing else; who is alone trains on.
    Below `min_world_size` the members wait in `admit`, keep their inner steps, and average
    with whoever comes; such newcomers have made one inner step by then.

    Memory: the parameters four times over (outer, momentum, pseudo-gradient, average).

    Args:
        comm: one communicator carries one training loop.
        params: arrays by name, all float32 or all float64, writable, changed in place to the
            parameters of the run. Names and shapes are the same on all members. An entry may
            be replaced between steps, by an array of the same shape and dtype. Or any
            `ParameterStore`.
        inner_steps: calls of `step` to a round; the same on all members.
        optimizer: the outer optimizer, the same on all members; `nesterov()` by default.
            `outer.optimizer` may be replaced between rounds by one with the same buffers, on
            all members alike (a schedule of the outer learning rate).
        codec: of the pseudo-gradients, as `Communicator.all_reduce` takes it. "uint8" is a
            quarter of the bytes.
        timeout_s: for each collective, as the communicator takes it; None waits.
        max_seconds_per_round: this peer ends its inner steps after so many seconds, so that
            others need not wait for a slow one; its weight is what it has done. Each peer has
            its own.
        resume: a checkpoint (`state_dict`). In a run that has begun, the members' state wins;
            if all are new, the newest checkpoint.
        clock: seconds, for `max_seconds_per_round` and the durations of `RoundInfo`.

    Raises:
        ValueError, TypeError: an argument is not as described.
        RinghaulError: as `Communicator.sync_state` raises it. The constructor is a collective,
            the first one after `connect`.
    """

    def _tasks(self) -> list[Task]:
        return [
            lambda: self._capture(0),
            lambda: self._post(0),
            lambda: self._wait(0),
            lambda: self._apply(0),
            self._admit,
            self._load_all,
            self._end_slot,
        ]

    def _wants_admission(self) -> bool:
        """Members meet at the end of a round anyway."""
        return True

    def admit(self) -> bool:
        """Let waiting peers in between two rounds, and give them the state. Were there any?

        A round's end does it anyway. This is for programs whose peers come in parts, such as the
        groups of a site: a collective over all groups, directly after the constructor or after
        a step that returned a `RoundInfo`.

        Raises:
            RinghaulError: as `Communicator.admit` and `sync_state` raise it.
        """
        return self._run.admit(is_planned=True)
