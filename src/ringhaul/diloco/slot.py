"""What one round has come to so far on this peer; at its end, the report."""

import math
from dataclasses import dataclass
from typing import SupportsFloat

from ringhaul.diloco.averaging import NO_AVERAGE, NOTHING, Average, Contribution
from ringhaul.diloco.results import RoundInfo


@dataclass(slots=True)
class Slot:
    """From one end of a round to the next."""

    began_at: float
    #: Inner steps, and their weights.
    inner_steps: int = 0
    weight: float = 0.0
    wait_s: float = 0.0
    has_admitted: bool = False
    #: This peer's parameters could not be given to the others.
    rejected: bool = False
    #: Of the newest outer step: its fragment, what this peer gave, the average, its norm.
    fragment: int = 0
    contribution: Contribution = NOTHING
    average: Average = NO_AVERAGE
    length: float = 0.0

    def info(self, outer_steps: int, position: int, duration_s: float) -> RoundInfo:
        """How it went: `outer_steps` and `position` are the run's, `duration_s` the step's."""
        average = self.average
        return RoundInfo(
            round=outer_steps,
            position=position,
            fragment=self.fragment,
            contributors=average.contributors,
            world_size=len(average.contributors),
            counted=average.counted,
            inner_steps=average.inner_steps,
            weight=average.weight,
            own_share=self.contribution.scale / average.scale if average.scale else 0.0,
            rejected=self.rejected,
            attempts=average.attempts,
            admitted=self.has_admitted,
            gradient_norm=self.length,
            sent_bytes=average.sent_bytes,
            received_bytes=average.received_bytes,
            reduce_s=average.duration_s,
            wait_s=self.wait_s,
            duration_s=duration_s,
        )


def parse_weight(weight: SupportsFloat) -> float:
    """The weight of one inner step, in float64 whatever it was counted in.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite and above 0.
    """
    if not hasattr(weight, "__float__"):
        raise TypeError(f"weight is a number, not {weight!r:.80}")
    number = float(weight)
    if not (math.isfinite(number) and number > 0.0):
        raise ValueError(f"weight is {number}; it has to be finite and above 0")
    return number
