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

    def __str__(self) -> str:
        """One line of a log."""
        sources = sum(1 for count in self.by_source.values() if count)
        return (
            f"{self.done_bytes / 1e6:.0f} of {self.total_bytes / 1e6:.0f} MB of the shared state "
            f"are here, from {sources} {'peer' if sources == 1 else 'peers'}"
        )
