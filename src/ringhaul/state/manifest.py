"""The entries of a state in a few KiB, so that an error can name the one that differs.

Decides nothing: layouts are compared by their digest. Manifests are compared only when those
differ, and are what a peer has sent: any bytes.
"""

import json
import zlib
from collections.abc import Iterable, Mapping

from ringhaul.limits import MANIFEST_BYTES_MAX
from ringhaul.state.digest import AnyArray, describe
from ringhaul.texts import printable

#: What a manifest may be when it is unpacked.
_TEXT_BYTES_MAX = 64 * MANIFEST_BYTES_MAX
#: Entries that an error names.
_NAMED_MAX = 3
#: Characters of a name, and of what it stands for.
_LENGTH_SHOWN = 80


def pack_manifest(arrays: Mapping[str, AnyArray], apart: Iterable[str] = ()) -> bytes:
    """Names, dtypes and shapes in name order; as many as there is room for."""
    may_differ = frozenset(apart)
    lines = [
        json.dumps([name, describe(arrays[name]).decode() + ", may differ" * (name in may_differ)])
        for name in sorted(arrays)
    ]
    while True:
        packed = zlib.compress("\n".join(lines).encode()[:_TEXT_BYTES_MAX], 1)
        if len(packed) <= MANIFEST_BYTES_MAX:
            return packed
        del lines[len(lines) // 2 :]


def _unpack(manifest: bytes) -> dict[str, str]:
    """Read what can be read."""
    try:
        text = zlib.decompressobj().decompress(manifest, _TEXT_BYTES_MAX).decode()
    except (zlib.error, UnicodeDecodeError):
        return {}
    entries = {}
    for line in text.split("\n"):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, list) and len(found) == 2 and all(isinstance(f, str) for f in found):
            entries[found[0]] = found[1]
    return entries


def explain_difference(first: str, one: bytes, second: str, other: bytes) -> str:
    """Name the entries that two members' manifests do not have in common; a sentence.

    `one` is the manifest of `first`, `other` that of `second`, whatever they hold.
    """
    mine, theirs = _unpack(one), _unpack(other)
    found = []
    for name in sorted(mine.keys() | theirs.keys()):
        shown = repr(name)[:_LENGTH_SHOWN]
        here, there = (printable(each.get(name, ""), _LENGTH_SHOWN) for each in (mine, theirs))
        if name not in theirs:
            found.append(f"only {first} has {shown} ({here})")
        elif name not in mine:
            found.append(f"only {second} has {shown} ({there})")
        elif mine[name] != theirs[name]:
            found.append(f"{shown} is {here} on {first} and {there} on {second}")
    if not found:
        return f"the first {len(mine)} entries agree, a later one differs"
    more = f", and {len(found) - _NAMED_MAX} more differ" if len(found) > _NAMED_MAX else ""
    return "; ".join(found[:_NAMED_MAX]) + more
