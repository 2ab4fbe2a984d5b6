"""What a user may choose about a churn test."""

from dataclasses import dataclass

from ringhaul.quant import find_codec

#: Every kind of fault there is.
FAULTS = ("kill", "stop", "join", "leave", "cut", "coordinator", "garbage")
#: Contributions are integers whose sums over so many peers are exact in float32.
PEERS_MAX = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ChurnOptions:
    """Options of `ringhaul churn`.

    Raises:
        ValueError: no such fault or codec, or a number out of its range.
    """

    #: Members that the test keeps up by letting others join.
    peers: int = 5
    #: During which faults are injected; the beginning and the calm end come on top.
    seconds: float = 50.0
    #: Of the faults' dice and of the calls' order.
    seed: int = 0
    faults: tuple[str, ...] = FAULTS
    #: Faults per second, on average.
    rate: float = 1.0
    #: Of the largest arrays.
    array_mib: float = 1.0
    #: Asynchronous operations in flight at a time.
    concurrent: int = 4
    #: Of half of the float32 all-reduces; the others are raw.
    codec: str = "raw"
    #: Where logs, facts and faults are kept whatever comes out; None: only if something is wrong,
    #: in a temporary folder.
    logs: str | None = None
    #: Print one JSON object at the end and nothing else.
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if unknown := sorted(set(self.faults) - set(FAULTS)):
            raise ValueError(f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
        for name, value, low, high in (
            ("peers", self.peers, 1, PEERS_MAX),
            ("seconds", self.seconds, 1.0, 1e6),
            ("rate", self.rate, 0.01, 20.0),
            ("array-mib", self.array_mib, 0.001, 1024.0),
            ("concurrent", self.concurrent, 1, 64),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it has to be from {low:g} to {high:g}")
        find_codec(self.codec)


def parse_faults(text: str) -> tuple[str, ...]:
    """Split what stands after `--faults`; "none" and "" mean none."""
    names = [word.strip() for word in text.split(",")]
    return tuple(dict.fromkeys(name for name in names if name and name != "none"))
