"""`ringhaul status`, as typer reads it."""

import json as json_format
import os
import sys
import time
from typing import Annotated

import trio
import typer
from rich.console import Console
from rich.live import Live

from ringhaul.cli.status.view import as_plain, page
from ringhaul.errors import ConnectError
from ringhaul.io.address import parse_address
from ringhaul.io.status_client import fetch_status
from ringhaul.limits import DEFAULT_PORT
from ringhaul.wire.status_messages import StatusReport

WATCH_INTERVAL_S = 1.0
#: The coordinator could not be asked.
EXIT_NO_STATUS = 1


def status_command(
    address: Annotated[
        str | None,
        typer.Argument(
            metavar="HOST:PORT",
            help=f"The coordinator; default: RINGHAUL_COORDINATOR, else 127.0.0.1:{DEFAULT_PORT}.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object, a line each.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again every second.")] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the answer.")
    ] = 5.0,
) -> None:
    """Show how a run is doing: rings, peers, open operations, who waits for whom.

    Read-only: whoever can reach the coordinator may ask, and the run takes no notice.
    """
    text = address or os.environ.get("RINGHAUL_COORDINATOR") or f"127.0.0.1:{DEFAULT_PORT}"
    try:
        host, port = parse_address(text, DEFAULT_PORT)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="HOST:PORT") from None
    try:
        if watch and not json:
            _watch(host, port, text, timeout_s)
        while True:
            report = trio.run(fetch_status, host, port, timeout_s)
            _show(report, text, as_json=json)
            if not watch:
                return
            time.sleep(WATCH_INTERVAL_S)
    except ConnectError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(EXIT_NO_STATUS) from None
    except (KeyboardInterrupt, BrokenPipeError):
        return


def _show(report: StatusReport, address: str, *, as_json: bool) -> None:
    if as_json:
        print(json_format.dumps(as_plain(report)), flush=True)
    else:
        Console().print(page(report, address))


def _watch(host: str, port: int, address: str, timeout_s: float) -> None:
    """Redraw until Ctrl-C; a coordinator that is away may come back."""
    with Live(console=Console(), auto_refresh=False, screen=sys.stdout.isatty()) as live:
        while True:
            try:
                shown = page(trio.run(fetch_status, host, port, timeout_s), address)
                live.update(shown, refresh=True)
            except ConnectError as error:
                live.update(str(error), refresh=True)
            time.sleep(WATCH_INTERVAL_S)
