"""Open a shell in a layer."""

from __future__ import annotations

import sys

import typer

from obuild.cli.console import guarded, note
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
def shell(
    id: IdArgument,
    store: StoreOption = "",
    *,
    machine: Machine,
    network: NetworkOption = "",
    user: UserOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Open a shell in a layer; changes are thrown away.

    It starts in the folder, as the user and with the environment of the layer's own command. obuild exits with the
    shell's status. `~.` at the start of a line leaves a machine that hangs.

    Example: obuild shell 3f2a
    """
    settings = machine.settings()
    open_network = is_open(network)
    debugger = open_layer(store, id, settings)
    if sys.stdin.isatty():
        note(f"starting a machine on layer {debugger.layer[:12]}; your changes will be thrown away")
    raise typer.Exit(debugger.shell(network=open_network, user=user))
