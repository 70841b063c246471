"""Remove layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli.console import guarded, open_store
from obuild.cli.options import StoreOption
from obuild.errors import ObuildError
from obuild.host import units

if TYPE_CHECKING:
    from obuild.plan.keys import LayerId
    from obuild.store.layers import Store

app = typer.Typer()


@app.command("rm")
@guarded
def remove(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="A layer's id, its first digits, or a tag.")],
    store: StoreOption = "",
    force: Annotated[bool, typer.Option("--force", help="Remove tagged layers and their tags, too.")] = False,
) -> None:
    """Remove layers, and all layers built on them. If any of these has a tag, nothing is removed.

    Example: obuild rm 3f2a
    """
    from obuild.store import removal
    from obuild.store.index import resolve

    opened = open_store(store)
    layers = [resolve(opened, id) for id in ids]
    if not force:
        _see_untagged(opened, layers)
    _stayed([id for layer in layers for id in removal.delete(opened, layer, tell=_removing, untag=force)])


def _see_untagged(store: Store, layers: Sequence[LayerId]) -> None:
    """Raise an ObuildError that names the tags of layers that would be removed, if there are any."""
    from obuild.store import removal

    tags = {name: id for layer in layers for name, id in removal.in_the_way(store, layer).items()}
    if tags:
        named = ", ".join(f"{name} ({id[:12]})" for name, id in tags.items())
        one = len(tags) == 1
        raise ObuildError(
            f"the {'tag' if one else 'tags'} {named} would lose {'its layer' if one else 'their layers'}",
            hint=f"obuild tag rm {' '.join(tags)} first, or --force to remove layers and tags",
        )


@app.command()
@guarded
def clean(store: StoreOption = "") -> None:
    """Remove all layers without a tag, and their saved machines: OBuilder's name for `prune --all`."""
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
            f"{units.count(len(ids), 'layer')} {'is' if len(ids) == 1 else 'are'} in use and not removed: "
            + ", ".join(id[:12] for id in ids),
            hint="a build is using them; try again when it has ended",
        )
