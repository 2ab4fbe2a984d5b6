"""Hashing a whole state: in as many threads as there are cores, where it is large."""

import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from ringhaul.state.content import HashedState
from ringhaul.state.shared import SharedState

#: Below this a pool of threads costs more than it gains.
_THREADED_BYTES_MIN = 32 << 20
_THREADS = min(os.cpu_count() or 1, 8)


def take_content(state: SharedState, apart: Collection[str] = ()) -> HashedState:
    """Hash what of a state is to be equal.

    The pool lives as long as the call: one of the process would not survive a fork.
    """
    if _THREADS == 1 or state.total_bytes < _THREADED_BYTES_MIN:
        return state.content(apart)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ringhaul-hash") as pool:
        return state.content(apart, pool.map)
