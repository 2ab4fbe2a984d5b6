"""What a user may choose about a benchmark, and how peers see that they chose the same."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ringhaul.limits import PEERS_MAX, STREAMS_MAX

MIB = 1 << 20
#: More sizes, or more numbers of streams, than anybody waits for.
CHOICES_MAX = 32
ARRAY_MIB_MAX = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """Options of `ringhaul bench`.

    Raises:
        ValueError: something that no run could be made of; says what.
    """

    #: Coordinator; None: `RINGHAUL_COORDINATOR`, else the default.
    address: str | None = None
    peers: int = 2
    #: Array sizes, MiB.
    sizes_mib: tuple[float, ...] = (0.0625, 1.0, 16.0, 64.0)
    #: Numbers of streams to try, besides the library's own choice.
    streams: tuple[int, ...] = (1, 2, 4, 8)
    #: For one size with one number of streams; it takes at least `CALLS_MIN` calls.
    seconds: float = 3.0
    json: bool = False
    #: No progress on stderr.
    quiet: bool = False
    #: Start a coordinator and all peers on this machine.
    local: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not 2 <= self.peers <= PEERS_MAX:
            raise ValueError(f"peers is {self.peers}; it has to be from 2 to {PEERS_MAX}")
        if not 1 <= len(self.sizes_mib) <= CHOICES_MAX or len(self.streams) > CHOICES_MAX:
            raise ValueError(f"name at least one size, and at most {CHOICES_MAX} of a kind")
        for mib in self.sizes_mib:
            if not 4 / MIB <= mib <= ARRAY_MIB_MAX:
                raise ValueError(f"a size is {mib} MiB; it has to be up to {ARRAY_MIB_MAX}")
        for count in self.streams:
            if not 1 <= count <= STREAMS_MAX:
                raise ValueError(f"streams is {count}; it has to be from 1 to {STREAMS_MAX}")
        if not 0.0 < self.seconds <= 3600.0:
            raise ValueError(f"seconds is {self.seconds}; it has to be above 0, up to 3600")
        if self.local and self.address is not None:
            raise ValueError("--local starts a coordinator of its own: name none")

    def sizes_bytes(self) -> list[int]:
        """Sizes in bytes, whole float32 elements, ascending."""
        return sorted({int(mib * MIB) // 4 * 4 for mib in self.sizes_mib})

    def fingerprint(self) -> NDArray[np.float64]:
        """Equal on two peers that will make the same calls; always of the same shape."""
        chosen = np.zeros(2 * CHOICES_MAX + 2)
        chosen[: len(self.sizes_mib)] = self.sizes_mib
        chosen[CHOICES_MAX : CHOICES_MAX + len(self.streams)] = self.streams
        chosen[-2:] = self.peers, self.seconds
        return chosen
