"""The fixed records of a state transfer, after its handshake: what is asked, what follows.

Requester -> source: `WANT_LIST`, `WANT`. Source -> requester: `HAVE`; `LIST` and `BLOCK`, whose
payload follows. All in network byte order.
"""

import enum
import struct
from dataclasses import dataclass

from ringhaul.errors import WireError

_FORMAT = struct.Struct("!BB2xIQ")
RECORD_BYTES = _FORMAT.size


class Kind(enum.IntEnum):
    """What a record says."""

    #: Send the digests of all blocks.
    WANT_LIST = 1
    #: Send `count` blocks from number `index` on.
    WANT = 2
    #: `count` blocks from number `index` on can be asked for here.
    HAVE = 3
    #: `count` bytes of the digests follow, from byte `index` on.
    LIST = 4
    #: Block number `index` follows, in `count` bytes.
    BLOCK = 5


class Packing(enum.IntEnum):
    """How the payload of a block is packed."""

    PLAIN = 0
    #: As `quant.compression.Compressor` packs it.
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class StateRecord:
    """One record."""

    kind: Kind
    index: int
    count: int
    packing: Packing = Packing.PLAIN

    def encode(self) -> bytes:
        """Pack it: `RECORD_BYTES` bytes."""
        return _FORMAT.pack(self.kind, self.packing, self.count, self.index)

    @staticmethod
    def decode(data: bytes | bytearray | memoryview) -> "StateRecord":
        """Unpack it.

        Raises:
            WireError: it is none. Whether the numbers fit the state is for the caller to see.
        """
        if len(data) != RECORD_BYTES:
            raise WireError(f"a state record of {len(data)} bytes")
        kind, packing, count, index = _FORMAT.unpack(data)
        try:
            record = StateRecord(Kind(kind), index, count, Packing(packing))
        except ValueError as error:
            raise WireError(f"a state record: {error}") from None
        if index >= 2**62:
            raise WireError(f"a state record about block {index}")
        return record
