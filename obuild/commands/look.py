"""Look at what is in a store."""

from __future__ import annotations

import sys

import typer

from obuild import ui
from obuild.console import IdArgument, JsonOption, StoreOption, guarded, open_store, put, put_json
from obuild.errors import UsageError

app = typer.Typer()


@app.command()
@guarded
def log(id: IdArgument, store: StoreOption) -> None:
    """Print what a step printed when its layer was made, or has printed so far."""
    opened = open_store(store)
    path = opened.log_path(opened.resolve(id, drafts=True))
    try:
        with path.open("rb") as file:
            while data := file.read(1 << 20):
                sys.stdout.buffer.write(data)
    except FileNotFoundError:
        raise UsageError(f"{id} has no log") from None
    sys.stdout.buffer.flush()


@app.command("ls")
@guarded
def list_layers(store: StoreOption) -> None:
    """List the layers: id, age, how long it took, size on disk, and the op that made it."""
    from obuild.index import Index

    with Index(open_store(store)) as index:
        rows = index.rows()
    for row in rows:
        shown = ui.one_line(row.op, 60)
        print(f"{row.id[:12]}  {ui.ago(row.created):>7}  {row.seconds:7.1f} s  {ui.size(row.size):>10}  {shown}")


@app.command()
@guarded
def explain(id: IdArgument, store: StoreOption, as_json: JsonOption = False) -> None:
    """Tell all about a layer: what made it, what it stands on, what stands on it, when, how big.

    Its key is everything that its id is the hash of. Sizes are on disk.

    Example: obuild explain --store=qemu:/data 3f2a
    """
    from obuild.describe import describe

    opened = open_store(store)
    layer = describe(opened, opened.resolve(id))
    if as_json:
        put_json(layer)
    else:
        put(*ui.description(layer))
