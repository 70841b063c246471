"""All about one layer."""

from __future__ import annotations

import typer

from obuild.cli import text
from obuild.cli.console import guarded, open_store, put, put_json
from obuild.cli.options import IdArgument, JsonOption, StoreOption

app = typer.Typer()


@app.command()
@guarded
def explain(id: IdArgument, store: StoreOption, as_json: JsonOption = False) -> None:
    """Tell all about a layer: what made it, what it stands on, what stands on it, when, how big.

    Its key is everything that its id is the hash of. Sizes are on disk.

    Example: obuild explain --store=qemu:/data 3f2a
    """
    from obuild.store.index import resolve
    from obuild.store.inspect import describe

    opened = open_store(store)
    layer = describe(opened, resolve(opened, id))
    if as_json:
        put_json(layer)
    else:
        put(*text.description(layer))
