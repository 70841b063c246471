"""Run a command in a layer."""

from __future__ import annotations

from typing import Annotated

import typer

from obuild.cli.console import guarded, put_bytes
from obuild.cli.debugging import is_open, open_layer
from obuild.cli.options import (
    IdArgument,
    Machine,
    NetworkOption,
    StoreOption,
    UserOption,
    VerboseOption,
    machine_options,
)

app = typer.Typer()


@app.command()
@guarded
@machine_options
def run(
    id: IdArgument,
    argv: Annotated[
        list[str], typer.Argument(metavar="CMD...", help="The program and its arguments, after `--`.")
    ],
    store: StoreOption = "",
    *,
    machine: Machine,
    network: NetworkOption = "",
    user: UserOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Run a program in a layer; changes are thrown away.

    It runs in the folder, as the user and with the environment of the layer's own command. obuild exits with its
    status.

    Example: obuild run 3f2a -- ls -l
    """
    settings = machine.settings()
    open_network = is_open(network)
    debugger = open_layer(store, id, settings)
    raise typer.Exit(debugger.run(tuple(argv), put_bytes, network=open_network, user=user))
