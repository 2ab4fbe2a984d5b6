"""How far the fetching of a state is: counted in the I/O thread, read by others."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Progress:
    """What has been fetched so far, over all attempts of a call."""

    #: Of the blocks that differ; 0 before it is known.
    total_bytes: int = 0
    #: Of these, verified.
    done_bytes: int = 0
    block_count: int = 0
    #: As they came, packed or not, those too that came twice.
    received_bytes: int = 0
    by_source: Counter[str] = field(default_factory=Counter)
