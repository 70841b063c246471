"""Disk usage."""

from __future__ import annotations

import typer

from obuild.cli.console import guarded, look_at, put, put_json
from obuild.cli.options import JsonOption, StoreOption
from obuild.host import units

app = typer.Typer()


@app.command()
@guarded
def df(store: StoreOption = "", as_json: JsonOption = False) -> None:
    """Show what the store takes on disk.

    Each line shows a kind of content, how many of it the store has, and its size on disk.

    Example: obuild df
    """
    from obuild.store import quota

    usage = quota.look(look_at(store))
    if as_json:
        put_json(usage)
        return
    put(*(f"{part.what:16} {part.count:>6}  {units.size(part.size):>10}" for part in usage.parts))
    put(f"{'total':16} {'':6}  {units.size(usage.total):>10}")
    put(f"{units.size(usage.free)} of {units.size(usage.capacity)} are free on the store's disk")
