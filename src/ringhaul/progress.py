"""A progress bar while a state is fetched, for people at a terminal.

Decides when there is one. Where there is no terminal, the log says how far it is.
"""

import sys
from contextlib import suppress
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from ringhaul.io.progress import Progress
from ringhaul.io.signals import Signal

#: What is over sooner needs no bar.
SHOWN_AFTER_S = 1.0
_REFRESH_S = 0.2


def wait_showing(ended: Signal, progress: Progress, file: IO[str] | None = None) -> None:
    """Wait until a call has ended; show on stderr how far it is, if that is a terminal.

    Args:
        ended: of the call.
        progress: what has been fetched so far.
        file: to write to instead of stderr.
    """
    with suppress(Exception):  # whatever stands for stderr: a bar is not worth a call
        _show_until(ended, progress, sys.stderr if file is None else file)
    ended.wait()


def _show_until(ended: Signal, progress: Progress, out: IO[str] | None) -> None:
    if out is None or not out.isatty():
        return
    if ended.wait(SHOWN_AFTER_S):
        return
    while not progress.total_bytes:  # who fetches nothing has nothing to show
        if ended.wait(_REFRESH_S):
            return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    bar = Bar(*columns, console=Console(file=out), auto_refresh=False, transient=True)
    with bar:
        task = bar.add_task("shared state", total=progress.total_bytes)
        is_over = False
        while not is_over:
            is_over = ended.wait(_REFRESH_S)
            bar.update(task, completed=progress.done_bytes, total=progress.total_bytes)
            bar.refresh()
