"""Free disk space."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli import text
from obuild.cli.bar import Bar
from obuild.cli.console import guarded, look_at, open_store, put, put_json, say
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
        bool, typer.Option("--all", help="Remove all layers and saved machines, but not caches.")
    ] = False,
    older_than: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Remove layers, caches and saved machines not used for TIME: 30m, 12h, 7d, 4w."
        ),
    ] = "",
    keep_bytes: Annotated[
        str,
        typer.Option(
            metavar="SIZE", help="Remove layers, caches and saved machines until the rest takes at most SIZE."
        ),
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed, and why.")] = False,
    as_json: JsonOption = False,
    before: Annotated[str, typer.Option(metavar="WHEN", hidden=True)] = "",
    limit: Annotated[int | None, typer.Option(metavar="N", min=0, hidden=True)] = None,
) -> None:
    """Free disk space: remove what was least recently used.

    Without options, only what nothing can use any more is removed. A layer is removed only after those built on
    it. Tagged layers, layers that running builds use, and all their ancestors stay; so do base images.

    Example: obuild prune --keep-bytes 20G --older-than 4w --dry-run
    """
    from obuild.store import gc

    if as_json and not dry_run:
        raise UsageError("--json needs --dry-run")
    if before and (all_layers or older_than or keep_bytes or dry_run):
        raise UsageError("--before works with --limit alone", hint="use --older-than with the other options")
    if limit is not None and not before:
        raise UsageError("--limit needs --before", hint="use --keep-bytes to limit the size")
    if all_layers and (older_than or keep_bytes):
        raise UsageError("--all removes layers of any age and size", hint="give it alone, or leave it out")
    if before:
        _before(store, before, limit)
        return
    keep = parse_bytes("--keep-bytes", keep_bytes) if keep_bytes else None
    try:
        span = units.duration(older_than) if older_than else None
    except ValueError as error:
        raise UsageError(f"--older-than: {error}", hint="for example 30m, 12h, 7d, 4w") from error
    opened = look_at(store) if dry_run else open_store(store)
    with Bar("looking at the store"):
        plan = gc.plan(opened, now=time.time(), keep_bytes=keep, older_than=span, all_layers=all_layers)
    if as_json:
        put_json(plan)
    elif dry_run:
        put(*(_line("would remove", item) for item in plan.items), *(_line("stays", item) for item in plan.in_use))
        put(_sum("Would remove", plan.items))
    else:
        _carry_out(opened, plan)


def _before(store: str, before: str, limit: int | None) -> None:
    """Remove layers not used since a moment, with the output of OBuilder's `prune --before`."""
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
    done, total = 0, sum(item.size for item in plan.items)
    with Bar("removing") as bar:
        above = bar.under(say)

        def tell(item: Item) -> None:
            nonlocal done
            gone.append(item)
            above(_line("removing", item))
            done += item.size
            bar(done, total)

        stayed = gc.carry_out(store, plan, tell)
    put(*(_line("stays", item) for item in (*plan.in_use, *stayed)), _sum("Removed", gone))
    if plan.short:
        raise ObuildError(
            f"{units.size(plan.short)} more should be removed, but everything left is in use or tagged",
            hint="running builds release their layers when they end; `obuild tag ls` lists the tags",
        )


def _line(what: str, item: Item) -> str:
    name = item.name[:12] if item.kind in ("layer", "warm", "stale") else text.word(item.name)
    return f"{what} {item.kind:5} {name:12} {units.size(item.size):>10} {text.ago(item.used):>7}  {item.why}"


def _sum(what: str, items: Sequence[Item]) -> str:
    return f"{what} {units.count(len(items), 'item')}, {units.size(sum(item.size for item in items))}"
