"""`ringhaul demo`, as typer reads it."""

from typing import Annotated

import typer

from ringhaul.cli.demo.options import DemoOptions
from ringhaul.cli.demo.orchestrator import run_demo

_DEFAULTS = DemoOptions()


def demo_command(
    peers: Annotated[int, typer.Option(help="Processes in the ring.")] = _DEFAULTS.peers,
    seconds: Annotated[
        float,
        typer.Option(help="Training time in the ring; one process alone gets the same afterwards."),
    ] = _DEFAULTS.seconds,
    kill: Annotated[bool, typer.Option(help="SIGKILL one peer on the way.")] = _DEFAULTS.kill,
    seed: Annotated[int, typer.Option(help="Of parameters, data, and victim.")] = _DEFAULTS.seed,
    codec: Annotated[str, typer.Option(help="Of the pseudo-gradients.")] = _DEFAULTS.codec,
    json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Train a small model in a ring of processes while one is killed and one joins.

    Exit code 0 only if the loss fell, all peers ended with the same bits, and the run
    survived the kill and the join.
    """
    try:
        options = DemoOptions(
            peers=peers, seconds=seconds, kill=kill, seed=seed, codec=codec, json=json
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(run_demo(options))
