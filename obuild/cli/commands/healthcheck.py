"""Check that building works on this host."""

from __future__ import annotations

from typing import Annotated

import typer

from obuild.cli.console import executor_of, guarded, lines, open_store
from obuild.cli.options import Machine, StoreOption, VerboseOption, machine_options

app = typer.Typer()


@app.command()
@guarded
@machine_options
def healthcheck(
    store: StoreOption = "",
    *,
    base: Annotated[str, typer.Option(metavar="NAME", help="The base image to test.")] = "micro",
    machine: Machine,
    verbose: VerboseOption = False,
) -> None:
    """Boot a guest, run a command in it, and shut it down.

    This shows whether QEMU, the base image and SSH work on this host.
    """
    from obuild.builder import engine

    settings = machine.settings(vm="boot")
    opened = open_store(store, create=True)
    engine.healthcheck(opened, base_name=base, settings=settings, tell=lines(), executor=executor_of(store))
    print("Healthcheck passed")
