"""How long a silence has to last to mean something, by how regularly a peer was heard so far.

As TCP finds its retransmission timeout: a mean and a mean deviation, both smoothed. Decides
nothing about who is lost.
"""

from dataclasses import dataclass

_MEAN_GAIN = 1 / 8
_SPREAD_GAIN = 1 / 4
#: Deviations beyond the mean: a gap of a peer that is merely slow is not so long.
_SPREADS = 8.0


@dataclass(slots=True)
class Arrivals:
    """The gaps between two signs of life of one peer. Seconds."""

    mean_s: float = 0.0
    spread_s: float = 0.0

    def note(self, gap_s: float, interval_s: float) -> None:
        """It was heard after so long. Messages in between two heartbeats, every `interval_s`,
        say nothing of how late one may be.
        """
        if gap_s < interval_s / 2:
            return
        if not self.mean_s:
            self.mean_s = gap_s
            return
        self.spread_s += _SPREAD_GAIN * (abs(gap_s - self.mean_s) - self.spread_s)
        self.mean_s += _MEAN_GAIN * (gap_s - self.mean_s)

    def patience_s(self, least_s: float, most_s: float) -> float:
        """What may pass without a sign of life, within these bounds; `least_s` wins."""
        return max(least_s, min(most_s, self.mean_s + _SPREADS * self.spread_s))
