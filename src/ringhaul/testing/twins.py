"""Runs the same code with NumPy alone and with compiled twins, to compare what comes out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ringhaul.ring.twins import Twin, install_twins, installed_twins


class Counted:
    """Twins that count how often they did the work themselves."""

    def __init__(self, twins: dict[str, Twin]) -> None:
        self.counts = dict.fromkeys(twins, 0)
        self._twins = twins

    def table(self) -> dict[str, Twin]:
        return {name: self._counted(name, twin) for name, twin in self._twins.items()}

    def _counted(self, name: str, twin: Twin) -> Twin:
        def call(*arguments: object) -> object:
            result = twin(*arguments)
            self.counts[name] += result is not False
            return result

        return call


@contextmanager
def installed(table: dict[str, Twin]) -> Iterator[None]:
    """These twins and no others, for as long as the block runs."""
    before = installed_twins()
    install_twins(table)
    try:
        yield
    finally:
        install_twins(before)


def both(twins: dict[str, Twin], act: Callable[[], Any], *used: str) -> tuple[Any, Any]:
    """What `act` gives with NumPy alone, and with twins, of which `used` did their work."""
    with installed({}):
        plain = act()
    counted = Counted(twins)
    with installed(counted.table()):
        fast = act()
    assert all(counted.counts[name] for name in used), (used, counted.counts)
    return plain, fast
