"""The text of the demo: the source code of Python's own standard library.

It is on every machine that runs the demo, so nothing is downloaded. Decides which files are
trained on and which are held out; the same files on every peer with the same Python.
"""

import gzip
import hashlib
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRAIN_BYTES_MAX = 4 << 20
#: Predicted byte by byte at the beginning and the end of a run: about a second.
HELD_OUT_BYTES_MAX = 128 << 10
#: One file in so many is held out.
HELD_OUT_SHARE = 16
#: Longer files are tables, not programs.
FILE_BYTES_MAX = 200_000
#: Other people's packages, tests (half of the library), and tables.
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
    | {"encodings", "pydoc_data", "__pycache__"}
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Bytes to train on and bytes to be judged by; no file is in both."""

    train: NDArray[np.uint8]
    held_out: NDArray[np.uint8]
    train_files: tuple[str, ...]
    held_out_files: tuple[str, ...]


def load_corpus(root: Path | None = None) -> Corpus:
    """Read the standard library, or the Python files below `root`.

    Files come in the order of a hash of their relative path, so that a cap takes an even
    sample of them; the same hash decides which are held out.

    Raises:
        FileNotFoundError: there is too little source text, as in an installation of
            compiled files only.
    """
    if root is None:
        root = Path(sysconfig.get_path("stdlib"))
    by_hash = sorted((_path_hash(name), name) for name in _source_files(root))
    train_names = [name for number, name in by_hash if number % HELD_OUT_SHARE]
    held_out_names = [name for number, name in by_hash if number % HELD_OUT_SHARE == 0]
    train, train_files = _read(root, train_names, TRAIN_BYTES_MAX)
    held_out, held_out_files = _read(root, held_out_names, HELD_OUT_BYTES_MAX)
    if not train or not held_out:
        raise FileNotFoundError(f"no Python source text below {root}; the demo trains on it")
    return Corpus(
        train=np.frombuffer(train, np.uint8),
        held_out=np.frombuffer(held_out, np.uint8),
        train_files=train_files,
        held_out_files=held_out_files,
    )


def gzip_bits_per_byte(data: bytes) -> float:
    """What gzip at its best level needs for one byte of `data`, which is not empty."""
    return 8.0 * len(gzip.compress(data, compresslevel=9, mtime=0)) / len(data)


def _source_files(root: Path) -> list[str]:
    """Paths below `root`, with slashes, of the files that look like programs."""
    names: list[str] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        for file in files:
            path = Path(folder, file)
            if path.suffix == ".py" and path.stat().st_size <= FILE_BYTES_MAX:
                names.append(path.relative_to(root).as_posix())
    return names


def _path_hash(name: str) -> int:
    """A number that depends on nothing but the relative path."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _read(root: Path, names: list[str], bytes_max: int) -> tuple[bytes, tuple[str, ...]]:
    """The files one after the other, cut at `bytes_max`, and which of them were read."""
    parts: list[bytes] = []
    room_bytes = bytes_max
    for name in names:
        if room_bytes == 0:
            break
        part = (root / name).read_bytes()[:room_bytes]
        parts.append(part)
        room_bytes -= len(part)
    return b"".join(parts), tuple(names[: len(parts)])
