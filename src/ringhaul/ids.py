"""The words everyone shares: names of peers, generations, operations. Decides nothing."""

import enum
from typing import NamedTuple, NewType

#: A peer's name for as long as its session lasts: its chosen name and a few random digits.
PeerId = NewType("PeerId", str)
#: Number of a group's membership: one higher at every change, never reused.
Generation = NewType("Generation", int)
#: Before the first generation.
NO_GENERATION = Generation(0)
#: Position in the ring order; valid in one generation only.
Rank = NewType("Rank", int)
#: One control connection, as its runner numbers it; never reused within a process.
LinkId = NewType("LinkId", int)
#: One call of the user on one peer, as its runner numbers it.
CallId = NewType("CallId", int)


#: Begins the tags of a batch's operations; the batch's own ordinal follows.
BATCH_TAG = "all_reduce_many#"


class OpKey(NamedTuple):
    """Names one collective on all members of a group, from one admission to the next.

    Untagged collectives are numbered in the order of the calls, tagged ones per tag.
    """

    tag: str | None
    ordinal: int

    def __str__(self) -> str:
        """Read as users think of it: `#3` or `'grads'#3`."""
        return f"#{self.ordinal}" if self.tag is None else f"{self.tag!r}#{self.ordinal}"


class ReduceOp(enum.Enum):
    """How values of the members are combined, element by element."""

    SUM = "sum"
    AVG = "avg"
    PROD = "prod"
    MIN = "min"
    MAX = "max"


class OnLoss(enum.Enum):
    """What a loss in the middle of a collective means for its callers."""

    RETRY = "retry"
    RAISE = "raise"
