"""Describe a layer."""

from __future__ import annotations

import typer

from obuild.cli import text
from obuild.cli.console import guarded, look_at, put, put_json
from obuild.cli.options import IdArgument, JsonOption, StoreOption

app = typer.Typer()


@app.command("inspect")
@guarded
def inspect_layer(id: IdArgument, store: StoreOption = "", as_json: JsonOption = False) -> None:
    """Describe a layer.

    Shows the op that made it, when, its size on disk, its tags, ancestors and children, and its key: everything
    that its id is the hash of.

    Example: obuild inspect 3f2a
    """
    from obuild.store.index import resolve
    from obuild.store.inspect import describe

    opened = look_at(store)
    layer = describe(opened, resolve(opened, id))
    if as_json:
        put_json(layer)
    else:
        put(*text.description(layer))
