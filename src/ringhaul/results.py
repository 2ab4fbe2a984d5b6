"""What calls return: facts about the membership, a reduction, a state sync."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Who takes part, as of one call; the same on all members but for `rank`.

    Attributes:
        generation: number of the membership of this group.
        rank: this peer's position in the ring order.
        world_size: number of members of this group.
        ring_order: peer ids by rank.
        joined: who came in with this call; empty if nobody did.
        pending_peers: how many wait to be admitted.
    """

    generation: int
    rank: int
    world_size: int
    ring_order: tuple[str, ...]
    joined: tuple[str, ...]
    pending_peers: int

    @property
    def admitted(self) -> bool:
        """Did this call let anybody into this group?"""
        return bool(self.joined)


@dataclass(frozen=True, slots=True)
class MeasuredError:
    """What the encodings of this peer lost of an operation, measured, in units of the result.

    Every member encodes each element once, so what the result is off by is the sum of what they
    all lost: at most the sum of their `largest`; in the mean, as their losses are independent,
    the root of the sum of the squares of their `rms`. With error feedback it comes back in the
    next call. Rounding to float16 or bfloat16, where the array is of that, is not counted.

    Attributes:
        largest: absolute, of an element. 0 if the codec loses nothing, or in a world of one.
        rms: root of the mean square over all elements.
    """

    largest: float
    rms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceInfo:
    """How an operation was committed.

    Attributes:
        world_size: number of contributors; the divisor of `avg`.
        contributors: peer ids in ring order; may name a peer lost since.
        attempts: 1, and one more for each loss in the middle.
        duration_s: from the call to the verdict.
        sent_bytes: tensor bytes this peer sent, over all attempts.
        received_bytes: tensor bytes this peer received.
        compression: times fewer bytes this peer sent than with "raw", in the last attempt.
        codec_error: what encoding lost; None unless `measure_error=True`.
    """

    world_size: int
    contributors: tuple[str, ...]
    attempts: int
    duration_s: float
    sent_bytes: int
    received_bytes: int
    compression: float = 1.0
    codec_error: MeasuredError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncInfo:
    """How a shared state became equal.

    Attributes:
        revision: of the elected content.
        received_bytes: fetched by this peer, as they came (compressed, where that paid);
            0 if it held the content.
        sent_bytes: given to other members by this peer.
        sources: peers that it was fetched from.
        duration_s: from the call to its end, hashing included.
        received_blocks: blocks of 1 MiB, or the end of an array, that differed.
        bytes_by_source: the `received_bytes` by the peer that gave them.
    """

    revision: int
    received_bytes: int
    sent_bytes: int
    sources: tuple[str, ...]
    duration_s: float
    received_blocks: int = 0
    bytes_by_source: Mapping[str, int] = field(default_factory=dict)
