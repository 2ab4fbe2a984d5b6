"""`ringhaul churn`, as typer reads it."""

from typing import Annotated

import typer

from ringhaul.cli.churn.options import FAULTS, ChurnOptions, parse_faults
from ringhaul.cli.churn.orchestrator import run_churn

_DEFAULTS = ChurnOptions()


def churn_command(
    peers: Annotated[int, typer.Option(help="Members that the test keeps up.")] = _DEFAULTS.peers,
    seconds: Annotated[
        float, typer.Option(help="Time with faults; some seconds more before and after.")
    ] = _DEFAULTS.seconds,
    seed: Annotated[int, typer.Option(help="Of faults and of the calls.")] = _DEFAULTS.seed,
    faults: Annotated[
        str, typer.Option(help=f"Comma-separated, of {', '.join(FAULTS)}; or none.")
    ] = ",".join(_DEFAULTS.faults),
    rate: Annotated[float, typer.Option(help="Faults per second.")] = _DEFAULTS.rate,
    array_mib: Annotated[float, typer.Option(help="The largest arrays.")] = _DEFAULTS.array_mib,
    concurrent: Annotated[
        int, typer.Option(help="Asynchronous operations in flight at a time.")
    ] = _DEFAULTS.concurrent,
    codec: Annotated[str, typer.Option(help="Of half of the all-reduces.")] = _DEFAULTS.codec,
    logs: Annotated[
        str | None, typer.Option(metavar="DIR", help="Keep logs, facts and faults here.")
    ] = _DEFAULTS.logs,
    json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Run a coordinator and peers as processes, inject faults, and check everything.

    Every result is compared with NumPy's for its contributors, and with the other members'; so
    is the shared state. Calls have to end in time, peers must not be evicted without reason,
    nothing may leak. Exit code 0 only if nothing was wrong; else logs and the seed are left.
    """
    try:
        options = ChurnOptions(
            peers=peers,
            seconds=seconds,
            seed=seed,
            faults=parse_faults(faults),
            rate=rate,
            array_mib=array_mib,
            concurrent=concurrent,
            codec=codec,
            logs=logs,
            json=json,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(run_churn(options))
