"""Digests of arrays: 16 bytes of BLAKE3 over dtype, byte order, shape and bytes.

Arrays are hashed where they lie, never copied. What differs in any of these has another
digest; the order of a mapping's entries does not matter, their names do.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

DIGEST_BYTES = 16
#: Below this a pool of threads costs more than it gains (measured: even at 8 MiB, 1.4x at 16).
_THREADED_BYTES_MIN = 8 << 20
#: A number, never `blake3.AUTO`: its pool is the process's and does not survive a fork.
_THREADS = min(os.cpu_count() or 1, 8)

AnyArray = NDArray[Any]


def byte_view(array: AnyArray) -> memoryview:
    """The bytes of a C-contiguous array, flat and without a copy; writable if the array is.

    Raises:
        ValueError: `array` is not C-contiguous.
    """
    if not array.flags.c_contiguous:
        raise ValueError("the array is not C-contiguous; pass np.ascontiguousarray(array)")
    if array.nbytes == 0:
        return memoryview(b"")
    # Through uint8, since bfloat16 has no buffer, and flat first, since 0-d has no other view.
    return np.asarray(array).reshape(-1).view(np.uint8).data


def _dtype_text(dtype: np.dtype[Any]) -> str:
    """Name a dtype and its byte order, the same on every machine."""
    if dtype.hasobject or dtype.names is not None:
        raise TypeError(f"dtype {dtype} has no digest: its bytes are pointers or have gaps")
    if dtype.byteorder == "|" or dtype.itemsize == 1:
        return f"|{dtype.name}"
    native = "<" if np.little_endian else ">"
    return (native if dtype.byteorder == "=" else dtype.byteorder) + dtype.name


def _describe(array: AnyArray) -> bytes:
    """Dtype, byte order and shape, in a form that no other dtype and shape have."""
    return f"{_dtype_text(array.dtype)}{list(array.shape)}".encode()


def _digest(description: bytes, data: memoryview) -> bytes:
    threads = _THREADS if len(data) > _THREADED_BYTES_MIN else 1
    hasher = blake3(len(description).to_bytes(4, "big") + description, max_threads=threads)
    hasher.update(data)
    return hasher.digest(length=DIGEST_BYTES)


def array_digest(array: AnyArray) -> bytes:
    """Digest one array: dtype, byte order, shape and bytes. 16 bytes.

    Raises:
        ValueError: `array` is not C-contiguous.
        TypeError: its dtype holds objects or named fields.
    """
    return _digest(_describe(array), byte_view(array))


def _combine(parts: Mapping[str, bytes]) -> blake3:
    """Hash names and what belongs to them, in name order, each with its length before it."""
    hasher = blake3(len(parts).to_bytes(8, "big"))
    for name in sorted(parts):
        # A name may be any string, halves of surrogate pairs included.
        for part in (name.encode(errors="surrogatepass"), parts[name]):
            hasher.update(len(part).to_bytes(4, "big") + part)
    return hasher


def layout_digest(arrays: Mapping[str, AnyArray]) -> str:
    """Digest names, dtypes and shapes, not the content. 32 hexadecimal digits."""
    described = {name: _describe(array) for name, array in arrays.items()}
    return _combine(described).hexdigest(length=DIGEST_BYTES)


def content_digest(arrays: Mapping[str, AnyArray]) -> bytes:
    """Digest names, dtypes, byte orders, shapes and bytes of all arrays. 16 bytes.

    Raises:
        ValueError: an array is not C-contiguous.
        TypeError: a dtype holds objects or named fields.
    """
    digests = {name: array_digest(array) for name, array in arrays.items()}
    return _combine(digests).digest(length=DIGEST_BYTES)


def buffer_digest(arrays: Mapping[str, AnyArray], buffer: bytes | bytearray | memoryview) -> bytes:
    """The `content_digest` that `arrays` would have with the bytes of `buffer` in them.

    Args:
        arrays: give names, dtypes and shapes; their content does not matter.
        buffer: the bytes of all arrays, in name order, nothing between them.

    Raises:
        ValueError: `buffer` has not as many bytes as the arrays.
    """
    data = memoryview(buffer).cast("B")
    total_bytes = sum(array.nbytes for array in arrays.values())
    if len(data) != total_bytes:
        raise ValueError(f"a buffer of {len(data)} bytes for arrays of {total_bytes}")
    digests = {}
    start = 0
    for name in sorted(arrays):
        end = start + arrays[name].nbytes
        digests[name] = _digest(_describe(arrays[name]), data[start:end])
        start = end
    return _combine(digests).digest(length=DIGEST_BYTES)
