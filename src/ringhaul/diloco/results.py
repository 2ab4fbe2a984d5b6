"""What a round of a training loop reports."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundInfo:
    """One round, as of its end. What is not said to be this peer's is equal on all members.

    In `DelayedDiLoCo` and `StreamingDiLoCo` it is about the newest outer step since the last
    round's end. If there was none (the pipeline had nothing yet), `contributors` is empty.
    """

    #: Outer steps of this run so far, with this one.
    round: int
    #: Inner steps of the run's schedule so far.
    position: int
    #: Which fragment was averaged; 0 unless the model is cut into fragments.
    fragment: int
    #: Peers in the average, in ring order; may name a peer lost since, and newcomers that had
    #: nothing to give yet.
    contributors: tuple[str, ...]
    #: Their number.
    world_size: int
    #: Those of them that had a pseudo-gradient to give. With 0 there was no outer step.
    counted: int
    #: Their inner steps and weights, together.
    inner_steps: int
    weight: float
    #: What this peer had of the weights in the average, 0 to 1.
    own_share: float
    #: This peer's parameters were not finite, or had moved farther than the codec carries: it
    #: gave nothing, and got the outer ones back.
    #: Its inner optimizer may have to be reset.
    rejected: bool
    #: Runs of the all-reduce: more than one if members were lost meanwhile.
    attempts: int
    #: Newcomers were let in at the end of the round, and have the state.
    admitted: bool
    #: Euclidean norm of the averaged pseudo-gradient.
    gradient_norm: float
    #: Tensor bytes that this peer sent and received for the average.
    sent_bytes: int
    received_bytes: int
    #: Seconds from the posting of the average to its verdict; this peer's.
    reduce_s: float
    #: Seconds of the round in which this peer waited for an average: what was not hidden.
    wait_s: float
    #: Seconds from this `step` call to its end; this peer's.
    duration_s: float
