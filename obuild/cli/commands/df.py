"""Where the bytes are."""

from __future__ import annotations

import typer

from obuild.cli.console import guarded, look_at, put, put_json
from obuild.cli.options import JsonOption, StoreOption
from obuild.host import units

app = typer.Typer()


@app.command()
@guarded
def df(store: StoreOption = "", as_json: JsonOption = False) -> None:
    """Show where the bytes are.

    There is a line for each kind of things: how many the store has, and what they take on disk.

    Example: obuild df
    """
    from obuild.store import quota

    usage = quota.look(look_at(store))
    if as_json:
        put_json(usage)
        return
    put(*(f"{part.what:16} {part.count:>6}  {units.size(part.size):>10}" for part in usage.parts))
    put(f"{'all':16} {'':6}  {units.size(usage.total):>10}")
    put(f"{units.size(usage.free)} of {units.size(usage.capacity)} are free on its disk")
