"""Make room."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli import text
from obuild.cli.console import guarded, look_at, open_store, put, put_json
from obuild.cli.options import JsonOption, StoreOption, parse_bytes
from obuild.errors import ObuildError, UsageError
from obuild.host import units

if TYPE_CHECKING:
    from obuild.store.gc import Item, Plan
    from obuild.store.layers import Store

app = typer.Typer()


@app.command()
@guarded
def prune(
    store: StoreOption = "",
    all_layers: Annotated[
        bool, typer.Option("--all", help="Remove all layers and saved machines; caches stay.")
    ] = False,
    older_than: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Remove layers, caches and saved machines not used for 30m, 12h, 7d, 4w."
        ),
    ] = "",
    keep_bytes: Annotated[
        str,
        typer.Option(
            metavar="SIZE", help="Remove layers, caches and saved machines until they take no more than SIZE."
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go, and why; remove nothing.")
    ] = False,
    as_json: JsonOption = False,
    before: Annotated[str, typer.Option(metavar="WHEN", hidden=True)] = "",
    limit: Annotated[int | None, typer.Option(metavar="N", min=0, hidden=True)] = None,
) -> None:
    """Make room: remove what was not used for longest.

    What nobody can need is removed, too; without options, only that. A layer goes after those that were built on
    it. What a tag names, what a running build uses, and all that these stand on, stays; so do base images.

    Example: obuild prune --keep-bytes 20G --older-than 4w --dry-run
    """
    from obuild.store import gc

    if as_json and not dry_run:
        raise UsageError("--json shows a plan: it goes with --dry-run")
    if before and (all_layers or older_than or keep_bytes or dry_run):
        raise UsageError("--before goes with --limit alone", hint="--older-than goes with the others")
    if limit is not None and not before:
        raise UsageError("--limit goes with --before", hint="--keep-bytes limits what is kept")
    if all_layers and (older_than or keep_bytes):
        raise UsageError("--all removes layers of any age and size", hint="leave it out, or give it alone")
    if before:
        _before(store, before, limit)
        return
    keep = parse_bytes("--keep-bytes", keep_bytes) if keep_bytes else None
    try:
        span = units.duration(older_than) if older_than else None
    except ValueError as error:
        raise UsageError(f"--older-than: {error}", hint="for example 30m, 12h, 7d, 4w") from error
    opened = look_at(store) if dry_run else open_store(store)
    plan = gc.plan(opened, now=time.time(), keep_bytes=keep, older_than=span, all_layers=all_layers)
    if as_json:
        put_json(plan)
    elif dry_run:
        put(*(_line("would remove", item) for item in plan.items), *(_line("stays", item) for item in plan.in_use))
        put(_sum("Would remove", plan.items))
    else:
        _carry_out(opened, plan)


def _before(store: str, before: str, limit: int | None) -> None:
    """Remove layers not used since a moment, and tell it, as OBuilder's `prune --before` does."""
    from obuild.store import gc

    try:
        moment = units.moment(before, time.time())
    except ValueError as error:
        raise UsageError(f"--before: {error}", hint="for example 12h, 7d, 4w, or 2026-01-31") from error
    opened = open_store(store)
    gone: list[str] = []

    def tell(item: Item) -> None:
        gone.append(item.name)
        print(f"Removing {item.name}")

    gc.carry_out(opened, gc.prune(opened, before=moment, limit=limit), tell)
    print(f"Removed {units.count(len(gone), 'item')}")


def _carry_out(store: Store, plan: Plan) -> None:
    from obuild.store import gc

    gone: list[Item] = []

    def tell(item: Item) -> None:
        gone.append(item)
        put(_line("removing", item))

    stayed = gc.carry_out(store, plan, tell)
    put(*(_line("stays", item) for item in (*plan.in_use, *stayed)), _sum("Removed", gone))
    if plan.short:
        raise ObuildError(
            f"{units.size(plan.short)} more should go, but all that is left is in use or tagged",
            hint="a build that runs lets go when it ends; `obuild tag ls` lists the tags",
        )


def _line(what: str, item: Item) -> str:
    name = item.name[:12] if item.kind in ("layer", "warm", "stale") else text.word(item.name)
    return f"{what} {item.kind:5} {name:12} {units.size(item.size):>10} {text.ago(item.used):>7}  {item.why}"


def _sum(what: str, items: Sequence[Item]) -> str:
    return f"{what} {units.count(len(items), 'item')}, {units.size(sum(item.size for item in items))}"
