"""Kernels compiled by numba, for those who install the extra: `pip install 'ringhaul[fast]'`.

The same bits as the NumPy code they stand in for, two to five times as fast. Compiling takes some
ten seconds once a machine (`python -m ringhaul.compiled` does it ahead), loading what was kept one:
`start` does both in a thread beside, and NumPy works until it is through. Decides when twins are
made, not what they compute.
"""

import functools
import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable

from ringhaul.ring.twins import install_twins

logger = logging.getLogger(__name__)

#: While kernels are made, other threads get the interpreter this soon: moving data needs it often
#: and for a short time (Python's default is 5 ms).
_SWITCH_INTERVAL_S = 0.0005


def is_available() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("numba") is not None


def load(is_wanted: Callable[[], bool] = lambda: True) -> int:
    """Compile all kernels, or load what an earlier process kept, and use them from now on.

    Returns:
        How many there are; 0 if `is_wanted`, asked now and then, said no.

    Raises:
        ImportError: the extra is not installed, or not for this Python.
    """
    table = importlib.import_module("ringhaul.compiled.table")
    twins = table.compile_twins(is_wanted)
    if twins:
        install_twins(twins)
    return len(twins)


@functools.cache
def start() -> threading.Thread | None:
    """`load` in a thread of its own, once a process; nothing without the extra.

    When the main thread ends, so does this one, after the kernel it is at.
    """
    if not is_available():
        return None
    thread = threading.Thread(target=_load, name="ringhaul-compile")
    thread.start()
    return thread


def _load() -> None:
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(min(interval_s, _SWITCH_INTERVAL_S))
    try:
        count = load(threading.main_thread().is_alive)
    except Exception as error:  # whatever numba meets: NumPy goes on with the work
        logger.warning("compiled kernels are not used: %s: %s", type(error).__name__, error)
    else:
        logger.info("%d compiled kernels are in use", count)
    finally:
        sys.setswitchinterval(interval_s)
