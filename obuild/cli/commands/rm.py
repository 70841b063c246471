"""Remove layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from obuild.cli.console import guarded, open_store
from obuild.cli.options import IdArgument, StoreOption
from obuild.errors import ObuildError
from obuild.host import units

app = typer.Typer()


@app.command()
@guarded
def delete(
    id: IdArgument,
    store: StoreOption,
    force: Annotated[bool, typer.Option("--force", help="Remove tags that are in the way, too.")] = False,
) -> None:
    """Remove a layer, and all layers that were built on it. If one of them has a tag, nothing is removed."""
    from obuild.store import removal
    from obuild.store.index import resolve

    opened = open_store(store)
    layer = resolve(opened, id)
    if not force and (tags := removal.in_the_way(opened, layer)):
        named = ", ".join(f"{name} ({id[:12]})" for name, id in tags.items())
        noun = "the tag" if len(tags) == 1 else "the tags"
        raise ObuildError(
            f"{noun} {named} would lose what {'it names' if len(tags) == 1 else 'they name'}",
            hint=f"obuild tag rm {' '.join(tags)}, or --force to remove layers and tags",
        )
    _stayed(removal.delete(opened, layer, tell=_removing, untag=force))


@app.command()
@guarded
def clean(store: StoreOption) -> None:
    """Remove all layers, and the machines saved for them. What has a tag stays, and base images and caches."""
    from obuild.store import removal

    gone: list[str] = []

    def tell(id: str) -> None:
        gone.append(id)
        _removing(id)

    stayed = removal.clean(open_store(store), tell=tell)
    _removed(gone)
    _stayed(stayed)


def _removing(id: str) -> None:
    print(f"Removing {id}")


def _removed(ids: Sequence[str]) -> None:
    print(f"Removed {units.count(len(ids), 'item')}")


def _stayed(ids: Sequence[str]) -> None:
    if ids:
        raise ObuildError(
            f"{units.count(len(ids), 'layer')} {'is' if len(ids) == 1 else 'are'} in use and stayed: "
            + ", ".join(id[:12] for id in ids),
            hint="a build is running on them; try again when it has ended",
        )
