"""Look at what is in a store."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli import text
from obuild.cli.console import IdArgument, JsonOption, StoreOption, guarded, open_store, put, put_json
from obuild.errors import UsageError
from obuild.host.regular import open_file

if TYPE_CHECKING:
    from obuild.store.inspect import Listed

app = typer.Typer()

#: How many layers `ls` lists by itself.
MOST = 100


@app.command()
@guarded
def log(id: IdArgument, store: StoreOption) -> None:
    """Print what a step printed when its layer was made, or has printed so far."""
    from obuild.store.index import resolve

    opened = open_store(store)
    path = opened.log_path(resolve(opened, id, drafts=True))
    try:
        with open_file(path) as file:
            while data := file.read(1 << 20):
                sys.stdout.buffer.write(data)
    except FileNotFoundError:
        raise UsageError(f"{id} has no log") from None
    sys.stdout.buffer.flush()


@app.command("ls")
@guarded
def list_layers(
    store: StoreOption,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="N", min=0, help="Only the N newest. [default: 100]")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All layers, however many.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the layers, the newest last: id, age, how long it took, size on disk, and the op that made it.

    With --json, all layers are listed unless there is a --limit.

    Example: obuild ls --store=qemu:/data --limit 10
    """
    from obuild.store.inspect import listing

    if everything and limit is not None:
        raise UsageError("--all and --limit say different things", hint="give one of them")
    newest = None if everything else MOST if limit is None and not as_json else limit
    layers, more = listing(open_store(store), newest)
    if as_json:
        put_json(layers)
        return
    put(*map(_line, layers))
    if more:
        put(f"… and {more} older {'one' if more == 1 else 'ones'}; --all lists them, --limit N the N newest")


def _line(layer: Listed) -> str:
    took = "-" if layer.seconds is None else f"{layer.seconds:.1f} s"
    about = f"{text.ago(layer.created):>7}  {took:>9}  {text.size(layer.size):>10}"
    return f"{layer.id[:12]}  {about}  {text.one_line(layer.op, 60)}"


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
