"""List the layers of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli import text
from obuild.cli.console import guarded, look_at, put, put_json
from obuild.cli.options import JsonOption, StoreOption
from obuild.errors import UsageError

if TYPE_CHECKING:
    from obuild.store.inspect import Listed

app = typer.Typer()

#: How many layers `ls` lists by default.
MOST = 100


@app.command("ls")
@guarded
def list_layers(
    store: StoreOption = "",
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="N", min=0, help="List the N newest. [default: 100]")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List all layers.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the layers, the newest last.

    Each line shows a layer's id, age, build time, size on disk, op and tags. With --json, all layers are listed
    unless --limit is given.

    Example: obuild ls --limit 10
    """
    from obuild.store.inspect import listing

    if everything and limit is not None:
        raise UsageError("--all and --limit exclude each other", hint="give only one of them")
    newest = None if everything else MOST if limit is None and not as_json else limit
    layers, more = listing(look_at(store), newest)
    if as_json:
        put_json(layers)
        return
    put(*map(_line, layers))
    if more:
        put(f"… and {more} older {'one' if more == 1 else 'ones'}; --all lists all, --limit N the N newest")


def _line(layer: Listed) -> str:
    took = "-" if layer.seconds is None else f"{layer.seconds:.1f} s"
    about = f"{text.ago(layer.created):>7}  {took:>9}  {text.size(layer.size):>10}"
    tags = f"  [{', '.join(layer.tags)}]" if layer.tags else ""
    return f"{layer.id[:12]}  {about}  {text.one_line(layer.op, 60)}{tags}"
