"""Kernels compiled by numba, for those who install the extra: `pip install 'ringhaul[fast]'`.

The same bits as the NumPy code they stand in for, two to five times as fast. Compiling takes some
ten seconds once a machine, loading what was kept one: `start` does both in a thread beside, and
NumPy works until it is through. Decides when twins are made, not what they compute.
"""

import importlib
import importlib.util
import logging
import threading

from ringhaul.ring.twins import install_twins

logger = logging.getLogger(__name__)

_lock = threading.Lock()
_thread: threading.Thread | None = None


def is_available() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("numba") is not None


def load() -> None:
    """Compile all kernels, or load what an earlier process kept, and use them from now on.

    Raises:
        ImportError: the extra is not installed, or not for this Python.
    """
    table = importlib.import_module("ringhaul.compiled.table")
    install_twins(table.compile_twins())


def start() -> None:
    """`load` in a thread of its own, once a process; does nothing without the extra."""
    global _thread
    with _lock:
        if _thread is None and is_available():
            _thread = threading.Thread(target=_load, name="ringhaul-compile", daemon=True)
            _thread.start()


def _load() -> None:
    try:
        load()
    except Exception as error:  # whatever numba meets: NumPy goes on with the work
        logger.warning("compiled kernels are not used: %s: %s", type(error).__name__, error)
    else:
        logger.info("compiled kernels are in use")
