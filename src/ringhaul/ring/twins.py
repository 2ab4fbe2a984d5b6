"""Compiled twins of kernels: the same bits, faster. None are known until somebody installs them.

Each caller looks up its twin by name at every call and has NumPy do the work where there is none,
or where the twin declines; so twins may come at any moment, of which no result depends. The names
and arguments are those of the functions in `ringhaul.compiled`. Decides nothing about how twins are
made.
"""

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

Twin = Callable[..., Any]

_twins: dict[str, Twin] = {}


def find_twin(name: str, *arrays: NDArray[Any]) -> Twin | None:
    """The twin of a name, if there is one and it can work on these arrays: they are aligned."""
    twin = _twins.get(name)
    if twin is not None:
        for array in arrays:
            if not array.flags.aligned:
                return None
    return twin


def install_twins(twins: Mapping[str, Twin]) -> None:
    """Let `find_twin` find these and no others, from its next call on; for the whole process."""
    _twins.update(twins)
    for name in _twins.keys() - twins.keys():
        del _twins[name]


def installed_twins() -> dict[str, Twin]:
    """What is installed now."""
    return dict(_twins)
