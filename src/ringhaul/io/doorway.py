"""Who is at the door: connections that have not proved who they are yet, a bounded number.

Decides who has to go when all places are taken: the oldest of the host that has most of them,
so that no crowd of strangers keeps an honest peer out. Closes nothing itself.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable

#: One customer of a provider has a whole such network to call from.
_IPV6_PREFIX_BITS = 64


class Doorway:
    """The places at one door.

    Args:
        places: how many may be there at once.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._count = 0
        #: By neighbourhood, then by number: the oldest first.
        self._visitors: dict[str, OrderedDict[int, Callable[[], None]]] = {}
        #: How many were sent away so far.
        self.dropped_count = 0

    def __len__(self) -> int:
        """How many are at the door."""
        return sum(len(crowd) for crowd in self._visitors.values())

    def enter(self, host: str, send_away: Callable[[], None]) -> Callable[[], None]:
        """Take a place; if none is free, somebody's `send_away` is called.

        Returns:
            To be called once it has proved who it is, or has gone; later calls do nothing.
        """
        while self._places and len(self) >= self._places:
            self._make_room()
        self._count += 1
        number, home = self._count, neighbourhood(host)
        self._visitors.setdefault(home, OrderedDict())[number] = send_away
        return lambda: self._leave(home, number)

    def _make_room(self) -> None:
        crowd = max(self._visitors.values(), key=lambda crowd: (len(crowd), -next(iter(crowd))))
        number, send_away = next(iter(crowd.items()))
        home = next(home for home, those in self._visitors.items() if those is crowd)
        self._leave(home, number)
        self.dropped_count += 1
        send_away()

    def _leave(self, home: str, number: int) -> None:
        crowd = self._visitors.get(home)
        if crowd is not None:
            crowd.pop(number, None)
            if not crowd:
                del self._visitors[home]


def neighbourhood(host: str) -> str:
    """What counts as one caller: an IPv4 address, or the first 64 bits of an IPv6 one."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, _IPV6_PREFIX_BITS), strict=False))
    return str(address)
