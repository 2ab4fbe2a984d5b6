"""Where inner parameters live, and where each has its place in the flat outer arrays.

A store reads and writes the parameters that the inner optimizer changes; `ArrayStore` is the
one for NumPy. A layout cuts them into fragments, each a contiguous part of the flat arrays.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ringhaul.diloco.outer import FloatArray

#: The number of a layer in a parameter's name: "blocks.3.attention.weight", "h/3/w".
_LAYER = re.compile(r"^(.*?)(?:^|[./_])(\d+)(?:[./_]|$)")


class ParameterStore(Protocol):
    """The parameters that the inner optimizer changes. One thread at a time uses it."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes; the same on all members."""
        ...

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Of the outer parameters: float32 or float64."""
        ...

    @property
    def averaged(self) -> frozenset[str]:
        """Names that are averaged plainly, whatever the outer optimizer is (running means)."""
        ...

    @property
    def is_rounding(self) -> bool:
        """Is anything kept in less precision than `dtype`, so that `write` rounds?"""
        ...

    def allocate(self, count: int) -> FloatArray:
        """New memory of `dtype`, zeros, that `read` and `write` are fast with."""
        ...

    def flush(self) -> None:
        """Wait until what `write` was given is no longer read."""
        ...

    def round(self, names: Sequence[str], values: FloatArray) -> None:
        """Change flat `values` to what would be read after they were written, in place."""
        ...

    def read(self, names: Sequence[str], into: FloatArray) -> None:
        """Copy the parameters `names`, one after the other, into the flat array `into`."""
        ...

    def write(self, names: Sequence[str], values: FloatArray) -> None:
        """The reverse: set the parameters `names` to the flat `values`."""
        ...


def store_of(params: Mapping[str, NDArray[np.floating]] | ParameterStore) -> ParameterStore:
    """What a training loop was given, as a store.

    Raises:
        TypeError: it is neither a mapping nor a store; and as `ArrayStore` does.
    """
    if isinstance(params, Mapping):
        return ArrayStore(params)
    if not hasattr(params, "shapes"):
        raise TypeError(
            f"params is a dict of NumPy arrays by name, not a {type(params).__name__}; the loops "
            "of ringhaul.torch take a module"
        )
    return params


class ArrayStore:
    """Parameters in NumPy arrays, all float32 or all float64.

    Raises:
        ValueError: there are none, or one is read-only.
        TypeError: they are not all NumPy arrays, or not all float32 or all float64.
    """

    def __init__(self, params: Mapping[str, NDArray[np.floating]]) -> None:
        if not params:
            raise ValueError("params is empty: there is nothing to train")
        for name, array in params.items():
            if not isinstance(array, np.ndarray):
                raise TypeError(
                    f"parameter {name!r} is a {type(array).__name__}, not a NumPy array; the loops "
                    "of ringhaul.torch take a module"
                )
        dtypes = {array.dtype for array in params.values()}
        if dtypes not in ({np.dtype(np.float32)}, {np.dtype(np.float64)}):
            found = ", ".join(sorted(str(dtype) for dtype in dtypes))
            raise TypeError(f"params are {found}; they have to be all float32 or all float64")
        for name, array in params.items():
            if not array.flags.writeable:
                raise ValueError(f"parameter {name!r} is read-only; DiLoCo writes into it")
        self._params = params
        self._dtype: np.dtype[np.floating] = dtypes.pop()
        self._shapes = {name: array.shape for name, array in params.items()}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """As of the beginning; an entry that is replaced has to keep its shape."""
        return self._shapes

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Of all of them."""
        return self._dtype

    @property
    def averaged(self) -> frozenset[str]:
        """None."""
        return frozenset()

    @property
    def is_rounding(self) -> bool:
        """Never."""
        return False

    def allocate(self, count: int) -> FloatArray:
        """Zeros."""
        return np.zeros(count, self._dtype)

    def flush(self) -> None:
        """Nothing is written later."""

    def round(self, names: Sequence[str], values: FloatArray) -> None:
        """They are kept as they are."""

    def read(self, names: Sequence[str], into: FloatArray) -> None:
        """Copy them; raises TypeError or ValueError if one became something else."""
        for name, part in self._parts(names, into):
            np.copyto(part, self._checked(name))

    def write(self, names: Sequence[str], values: FloatArray) -> None:
        """Set them, in place; raises as `read`."""
        for name, part in self._parts(names, values):
            np.copyto(self._checked(name), part)

    def _parts(self, names: Sequence[str], flat: FloatArray) -> list[tuple[str, FloatArray]]:
        parts = []
        start = 0
        for name in names:
            shape = self._shapes[name]
            stop = start + element_count(shape)
            parts.append((name, flat[start:stop].reshape(shape)))
            start = stop
        return parts

    def _checked(self, name: str) -> FloatArray:
        """The entry, if it still is what the run is about; NumPy would convert or broadcast it."""
        array = self._params[name]
        if array.dtype != self._dtype:
            raise TypeError(f"parameter {name!r} became {array.dtype}; the run has {self._dtype}")
        if array.shape != self._shapes[name]:
            raise ValueError(
                f"parameter {name!r} became {array.shape}; the run has {self._shapes[name]}"
            )
        return array


def element_count(shape: Sequence[int]) -> int:
    """Of an array of that shape."""
    return int(np.prod(shape, dtype=np.int64))


class Layout:
    """Each fragment's part of a flat array, and each parameter's.

    Fragments lie one after the other; in a fragment, parameters are sorted by name, so that
    the order of a mapping does not matter; those that are only averaged come last.

    Args:
        shapes: of the parameters, by name.
        fragments: names of each fragment; every name exactly once. None: one of all.
        averaged: names that lie at the end of their fragment, so that they can be told apart.

    Raises:
        ValueError: a name is missing, unknown or there twice, or a fragment is empty.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        fragments: Sequence[Sequence[str]] | None = None,
        averaged: frozenset[str] = frozenset(),
    ) -> None:
        given = [list(shapes)] if fragments is None else [list(names) for names in fragments]
        named = [name for names in given for name in names]
        if sorted(named) != sorted(shapes):
            wrong = sorted(set(named) ^ set(shapes)) or sorted(
                {name for name in named if named.count(name) > 1}
            )
            raise ValueError(f"fragments have to name every parameter once; see {wrong[:5]}")
        if not all(given):
            raise ValueError("a fragment names no parameter")
        #: Names of each fragment, in their order in the flat array.
        self.names: tuple[tuple[str, ...], ...] = tuple(
            tuple(sorted(names, key=lambda name: (name in averaged, name))) for names in given
        )
        self._shapes = shapes
        starts: dict[str, int] = {}
        #: Each fragment's part of a flat array.
        self.parts: list[slice] = []
        #: Elements of each fragment that the outer optimizer steps; the rest is averaged.
        self.stepped_counts: list[int] = []
        total = 0
        for names in self.names:
            began = total
            stepped = 0
            for name in names:
                starts[name] = total
                total += element_count(shapes[name])
                stepped = stepped if name in averaged else total - began
            self.parts.append(slice(began, total))
            self.stepped_counts.append(stepped)
        self._starts = starts
        self.element_count = total

    @property
    def fragment_count(self) -> int:
        """How many fragments."""
        return len(self.names)

    def views(self, flat: FloatArray) -> dict[str, FloatArray]:
        """Parts of `flat` by name, in the shapes of the parameters."""
        views: dict[str, FloatArray] = {}
        for name, start in self._starts.items():
            shape = self._shapes[name]
            views[name] = flat[start : start + element_count(shape)].reshape(shape)
        return views


def strided_fragments(shapes: Mapping[str, tuple[int, ...]], count: int) -> list[list[str]]:
    """Cut a model into fragments by layers, strided over its depth (arXiv 2501.18512).

    The first number in a parameter's name is its layer: layer i goes to fragment i mod
    `count`, so that every fragment has early and late layers. What has no number (embeddings,
    the head) goes, largest first, to the fragment that has fewest elements so far.

    Args:
        shapes: of the parameters, by name.
        count: of fragments, at most as many as there are layers and parameters without one.

    Raises:
        ValueError: `count` is below 1, or a fragment would be empty.
    """
    if count < 1:
        raise ValueError(f"{count} fragments; there has to be 1 or more")
    fragments: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    layers: dict[tuple[str, int], list[str]] = {}
    others = []
    for name in sorted(shapes):
        found = _LAYER.match(name)
        if found is None:
            others.append(name)
        else:
            layers.setdefault((found[1], int(found[2])), []).append(name)
    for place, layer in enumerate(sorted(layers)):
        fragments[place % count] += layers[layer]
        sizes[place % count] += sum(element_count(shapes[name]) for name in layers[layer])
    for name in sorted(others, key=lambda name: (-element_count(shapes[name]), name)):
        smallest = min(range(count), key=lambda index: (sizes[index], index))
        fragments[smallest].append(name)
        sizes[smallest] += element_count(shapes[name])
    if not all(fragments):
        raise ValueError(
            f"{count} fragments are too many: there are {len(layers)} layers and "
            f"{len(others)} other parameters"
        )
    return fragments
