"""One weighted average over all members, from its posting to the verdict.

Two all-reduces travel together: the pseudo-gradients, each times its peer's weight, and a
tally of the weights, a few numbers that no codec may touch. They have a verdict each, so a
member may be lost between the two. Then one sum has a contributor that the other lacks, which
all members see alike in the two results: the sum with more contributors is made again among
the survivors, until both are of the same peers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ringhaul.diloco.members import Collectives, InFlight, ReduceResult
from ringhaul.diloco.outer import FloatArray
from ringhaul.errors import CodecError, RinghaulError
from ringhaul.quant import Codec

#: What a tally sums: the weight of the average, the weight as the caller gave it, inner steps,
#: and how many peers contribute.
_TALLY_COUNT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one peer adds to an average; nothing at all if `scale` is 0."""

    #: The pseudo-gradient was multiplied by this.
    scale: float
    #: As the caller counted it: tokens, or inner steps.
    weight: float
    inner_steps: int

    def tally(self) -> NDArray[np.float64]:
        """One peer's row of the sum."""
        counted = self.scale > 0.0
        return np.array([self.scale, self.weight, self.inner_steps, counted], np.float64)


#: Of a newcomer, which has nothing to give yet but takes part in what is under way.
NOTHING = Contribution(scale=0.0, weight=0.0, inner_steps=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """How an average was made; the same on all members but for the durations and bytes."""

    #: Peers in the sum, in ring order, those without weight too.
    contributors: tuple[str, ...]
    #: Peers with a weight.
    counted: int
    #: What the sum was divided by. 0: nobody had anything to give, and there is no average.
    scale: float
    weight: float
    inner_steps: int
    attempts: int
    duration_s: float
    sent_bytes: int
    received_bytes: int


#: Of a round in which nothing arrived.
NO_AVERAGE = Average(
    contributors=(),
    counted=0,
    scale=0.0,
    weight=0.0,
    inner_steps=0,
    attempts=0,
    duration_s=0.0,
    sent_bytes=0,
    received_bytes=0,
)


class Flight:
    """The two all-reduces of one average. They own `values` and `average` until `wait` ends.

    Args:
        comm: where they travel.
        values: shape (n,), this peer's pseudo-gradient, times its scale; read, and set to 0
            if no codec can carry it (`leave_out`).
        average: shape and dtype of `values`; gets the average.
        contribution: this peer's weights.
        codec: of the pseudo-gradients.
        tag: of this fragment; the same on all members.
        timeout_s: for each of the two.
    """

    def __init__(
        self,
        comm: Collectives,
        values: FloatArray,
        average: FloatArray,
        contribution: Contribution,
        *,
        codec: str | Codec,
        tag: str,
        timeout_s: float | None,
    ) -> None:
        self.contribution = contribution
        self._comm = comm
        self._values = values
        self._average = average
        self._codec = codec
        self._tag = tag
        self._timeout_s = timeout_s
        self._tally = contribution.tally()
        self._totals = np.zeros(_TALLY_COUNT, np.float64)
        self._tally_work: InFlight | None = None
        self._bulk_work: InFlight | None = None
        #: Of every work that was committed, for the bytes.
        self._committed: dict[InFlight, ReduceResult] = {}
        #: Who gives nothing any more; the same on all members that have posted as often.
        self._left_out: set[str] = set()

    def post(self) -> None:
        """Begin both, or what of them an error has ended. Does not wait."""
        if self._tally_work is None:
            self._tally_work = self._comm.all_reduce_async(
                self._tally, "sum", out=self._totals, tag=f"{self._tag}/tally",
                timeout_s=self._timeout_s,
            )  # fmt: skip
        if self._bulk_work is None:
            self._bulk_work = self._comm.all_reduce_async(
                self._values, "sum", out=self._average, codec=self._codec, tag=self._tag,
                timeout_s=self._timeout_s,
            )  # fmt: skip

    @property
    def is_posted(self) -> bool:
        """Is any of it in flight, or here and not waited for?"""
        return self._tally_work is not None or self._bulk_work is not None

    def wait(self) -> Average:
        """Wait until both sums are there, of the same peers; then divide.

        Raises:
            RinghaulError: as the communicator raises it, on all members alike. Neither is in
                flight any more, and `values` are as they were: `post` again. After an
                interrupt both are in flight still: wait again.
        """
        self.post()
        while True:
            tally, bulk = self._wait_both()
            if tally.contributors == bulk.contributors:
                break
            if set(tally.contributors) > set(bulk.contributors):
                self._tally_work = None
            else:
                self._bulk_work = None
            self.post()
        self._tally_work = self._bulk_work = None
        scale, weight, inner_steps, counted = (float(total) for total in self._totals)
        if scale > 0.0 and scale != 1.0:
            np.divide(self._average, self._average.dtype.type(scale), out=self._average)
        return Average(
            contributors=bulk.contributors,
            counted=int(counted),
            scale=scale,
            weight=weight,
            inner_steps=int(inner_steps),
            attempts=bulk.attempts,
            duration_s=max(info.duration_s for info in (tally, bulk)),
            sent_bytes=sum(info.sent_bytes for info in self._committed.values()),
            received_bytes=sum(info.received_bytes for info in self._committed.values()),
        )

    def leave_out(self, error: CodecError, own_id: str) -> bool:
        """After that error of `wait`: whom it names gives nothing when it is posted again.

        Returns:
            Is it this peer?

        Raises:
            CodecError: nobody new is named, so that posting again would bring it again.
        """
        named = set(error.peers) - self._left_out
        if not named:
            raise error
        if own_id in named:
            self._values[:] = 0.0
            self.contribution = NOTHING
            self._tally = NOTHING.tally()
        self._left_out |= named
        return own_id in named

    def _wait_both(self) -> tuple[ReduceResult, ReduceResult]:
        """Both results; after an error neither is in flight."""
        assert self._tally_work is not None
        assert self._bulk_work is not None
        infos = []
        errors = []
        for work in (self._tally_work, self._bulk_work):
            try:
                infos.append(work.wait())
                self._committed[work] = infos[-1]
            except RinghaulError as error:
                errors.append(error)
        if errors:
            self._tally_work = self._bulk_work = None
            raise errors[0]
        return infos[0], infos[1]
