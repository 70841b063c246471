"""The layers of a store."""

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

#: How many layers `ls` lists by itself.
MOST = 100


@app.command("ls")
@guarded
def list_layers(
    store: StoreOption = "",
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="N", min=0, help="Only the N newest. [default: 100]")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All layers, however many.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the layers, the newest last.

    A line has the id, the age, how long it took, the size on disk, the op that made it, and its tags. With --json,
    all layers are listed unless there is a --limit.

    Example: obuild ls --limit 10
    """
    from obuild.store.inspect import listing

    if everything and limit is not None:
        raise UsageError("--all and --limit say different things", hint="give one of them")
    newest = None if everything else MOST if limit is None and not as_json else limit
    layers, more = listing(look_at(store), newest)
    if as_json:
        put_json(layers)
        return
    put(*map(_line, layers))
    if more:
        put(f"… and {more} older {'one' if more == 1 else 'ones'}; --all lists them, --limit N the N newest")


def _line(layer: Listed) -> str:
    took = "-" if layer.seconds is None else f"{layer.seconds:.1f} s"
    about = f"{text.ago(layer.created):>7}  {took:>9}  {text.size(layer.size):>10}"
    tags = f"  [{', '.join(layer.tags)}]" if layer.tags else ""
    return f"{layer.id[:12]}  {about}  {text.one_line(layer.op, 60)}{tags}"
