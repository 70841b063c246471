"""Print the output of a step."""

from __future__ import annotations

import sys

import typer

from obuild.cli.console import guarded, look_at
from obuild.cli.options import IdArgument, StoreOption
from obuild.errors import UsageError
from obuild.host.regular import open_file

app = typer.Typer()


@app.command()
@guarded
def logs(id: IdArgument, store: StoreOption = "") -> None:
    """Print the output of a step.

    If the step is still being built, this is its output so far.

    Example: obuild logs 3f2a
    """
    from obuild.store.index import resolve

    opened = look_at(store)
    path = opened.log_path(resolve(opened, id, drafts=True))
    try:
        with open_file(path) as file:
            while data := file.read(1 << 20):
                sys.stdout.buffer.write(data)
    except FileNotFoundError:
        raise UsageError(f"{id} has no log") from None
    sys.stdout.buffer.flush()
