"""What a user may choose about a demo."""

from dataclasses import dataclass

from ringhaul.quant import find_codec


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Options of `ringhaul demo`.

    Raises:
        ValueError: too few peers for a ring that loses one, too little time, or no such codec.
    """

    peers: int = 4
    #: Of training in the ring; one process alone is given the same afterwards, so that a
    #: demo takes twice as long and a few seconds more.
    seconds: float = 20.0
    #: SIGKILL one peer at `KILL_SHARE` of the time.
    kill: bool = True
    seed: int = 0
    #: Of the pseudo-gradients; the summary says what it did to the loss.
    codec: str = "raw"
    #: Print one JSON object at the end and nothing else.
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot show anything."""
        if self.peers < (2 if self.kill else 1):
            raise ValueError(f"{self.peers} peers are too few; with a kill 2 are needed")
        if self.peers > 64:
            raise ValueError(f"{self.peers} peers are too many for one machine; 64 is the most")
        find_codec(self.codec)
        if not 5.0 <= self.seconds <= 3600.0:
            raise ValueError(f"seconds is {self.seconds}; it has to be from 5 to 3600")


#: When a peer is killed, as a share of the time in the ring.
KILL_SHARE = 0.4
#: When another one is started.
JOIN_SHARE = 0.6
