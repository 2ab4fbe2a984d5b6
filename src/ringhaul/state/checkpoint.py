"""Checkpoints: a state in one file, in the safetensors format, checked when it is read.

Decides what is in the file and which file is believed. Never pickle. A file is whole or not
there: it is written beside its place, flushed to the disk, and renamed.

The format is a length (8 bytes, little-endian), a header in JSON, and the bytes of all arrays:
https://github.com/huggingface/safetensors. Any reader of it can open a checkpoint. The metadata
say `ringhaul_format`, `revision`, and the BLAKE3 digest of each array and of the whole; dtypes
that the format lacks are stored as bytes, with their name in the metadata.
"""

import contextlib
import errno
import json
import math
import mmap
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from blake3 import blake3

from ringhaul.errors import StateError
from ringhaul.limits import STATE_ENTRIES_MAX
from ringhaul.state.digest import AnyArray, array_digest, byte_view, combined_digest

_FORMAT = "1"
_LENGTH_BYTES = 8
#: As the safetensors library has it.
_HEADER_BYTES_MAX = 100_000_000
_ALIGNMENT = 8
_WRITTEN_BYTES = 16 << 20

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write_checkpoint(path: Path, arrays: Mapping[str, AnyArray], revision: int) -> None:
    """Replace the file at `path`, or leave it as it is.

    Raises:
        ValueError: a name or dtype cannot be written, or the machine is big-endian.
        OSError: the disk is full, the folder is missing or read-only, or `path` is something
            else than a file.
    """
    if path.exists() and not path.is_file():  # a device would be replaced by a file
        raise OSError(errno.EEXIST, "is there, and is no file", str(path))
    if sys.byteorder != "little":
        raise ValueError("checkpoints are little-endian, and this machine is not")
    header = _header(arrays, revision)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix="~")
    try:
        with open(descriptor, "wb") as file:
            file.write(len(header).to_bytes(_LENGTH_BYTES, "little") + header)
            for name in sorted(arrays):
                view = byte_view(arrays[name])
                for start in range(0, len(view), _WRITTEN_BYTES):
                    file.write(view[start : start + _WRITTEN_BYTES])
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _flush_folder(path.parent)


def _umask() -> int:
    """The process's; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _flush_folder(folder: Path) -> None:
    """Have the new name survive a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _header(arrays: Mapping[str, AnyArray], revision: int) -> bytes:
    entries: dict[str, Any] = {}
    digests: dict[str, bytes] = {}
    foreign: dict[str, str] = {}
    offset = 0
    for name in sorted(arrays):
        array = arrays[name]
        if name == "__metadata__":
            raise ValueError("an array named '__metadata__' cannot be in a checkpoint")
        shape = list(array.shape)
        kind = _NAMES.get(array.dtype)
        if kind is None:
            if np.dtype(array.dtype.str) != array.dtype:  # it would come back as raw bytes
                raise ValueError(f"array {name!r:.80} is {array.dtype}: no file can name that")
            kind = "U8"
            foreign[name] = array.dtype.str
            shape.append(array.itemsize)
        end = offset + array.nbytes
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, end]}
        digests[name] = array_digest(array)
        offset = end
    metadata = {
        "ringhaul_format": _FORMAT,
        "revision": str(revision),
        "checksum": _checksum(revision, digests),
        "digests": json.dumps({name: digest.hex() for name, digest in digests.items()}),
        "dtypes": json.dumps(foreign),
    }
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    return text + b" " * (-len(text) % _ALIGNMENT)


def _checksum(revision: int, digests: Mapping[str, bytes]) -> str:
    """Of all that is believed: the arrays, their names, dtypes and shapes, and the revision."""
    return blake3(b"%d\n" % revision + combined_digest(digests)).hexdigest(length=16)


class Checkpoint:
    """A file that has been read and found right.

    Attributes:
        revision: of its content.
        arrays: by name, read-only views of the file; copy what is to live longer.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and check all of it.

        Raises:
            FileNotFoundError: there is none.
            StateError: the file is torn, truncated, altered, or no checkpoint; says which.
        """
        self._path = path
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size <= _LENGTH_BYTES:
                raise self._refusal("it is too short to be a checkpoint: writing was interrupted")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        header, body = self._split(data)
        metadata = header.pop("__metadata__", None)
        if not isinstance(metadata, dict) or metadata.get("ringhaul_format") != _FORMAT:
            raise self._refusal(
                "it is a safetensors file, but no checkpoint of this version of ringhaul: load it "
                "with the safetensors package and make a SharedState of its arrays"
            )
        try:
            self.revision = int(metadata["revision"])
            digests = {n: bytes.fromhex(d) for n, d in json.loads(metadata["digests"]).items()}
            foreign = json.loads(metadata["dtypes"])
            is_sealed = metadata["checksum"] == _checksum(self.revision, digests)
            if not is_sealed or digests.keys() != header.keys() or len(header) > STATE_ENTRIES_MAX:
                raise self._refusal("its header has been altered")
            self.arrays = {
                name: _view(entry, foreign.get(name), body) for name, entry in header.items()
            }
        except (
            KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError,
        ) as error:  # fmt: skip
            raise self._refusal(f"its header is not one of ringhaul's ({error!r:.80})") from None
        for name, array in self.arrays.items():
            if array_digest(array) != digests[name]:
                raise self._refusal(f"the bytes of array {name!r:.80} have been altered")

    def _refusal(self, reason: str) -> StateError:
        return StateError(f"{self._path} is not loaded: {reason}. Load an older checkpoint")

    def _split(self, data: memoryview) -> tuple[dict[str, Any], memoryview]:
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        if length > _HEADER_BYTES_MAX:
            raise self._refusal("it is no safetensors file")
        if len(data) < _LENGTH_BYTES + length:
            raise self._refusal("it is truncated, or no safetensors file")
        try:
            header = json.loads(bytes(data[_LENGTH_BYTES : _LENGTH_BYTES + length]))
        except (ValueError, RecursionError):
            raise self._refusal("it is no safetensors file") from None
        if not isinstance(header, dict):
            raise self._refusal("it is no safetensors file")
        body = data[_LENGTH_BYTES + length :]
        entries = (entry for name, entry in header.items() if name != "__metadata__")
        try:
            end = max((int(entry["data_offsets"][1]) for entry in entries), default=0)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError):
            raise self._refusal("it is no safetensors file") from None
        if len(body) != end:
            raise self._refusal(f"{len(body)} bytes of arrays are there instead of {end}")
        return header, body


def _view(entry: Mapping[str, Any], dtype_text: str | None, body: memoryview) -> AnyArray:
    """One array of a file's body.

    Raises:
        KeyError, TypeError, ValueError: the entry does not describe one.
    """
    dtype = _DTYPES[entry["dtype"]]
    shape = [int(length) for length in entry["shape"]]
    start, stop = entry["data_offsets"]
    if dtype_text is not None:
        dtype = np.dtype(dtype_text)
        shape = shape[:-1]
    if not 0 <= start <= stop <= len(body) or min(shape, default=0) < 0:
        raise ValueError("offsets or shape")
    if stop - start != math.prod(shape) * dtype.itemsize or dtype.hasobject:
        raise ValueError("shape and bytes")
    if start == stop:
        return np.empty(shape, dtype)
    return np.frombuffer(body[start:stop], np.uint8).view(dtype).reshape(shape)
