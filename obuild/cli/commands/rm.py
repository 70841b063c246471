"""Remove layers."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from obuild.cli.console import guarded, open_store
from obuild.cli.options import IdArgument, StoreOption
from obuild.errors import ObuildError
from obuild.host import units

app = typer.Typer()


@app.command()
@guarded
def delete(id: IdArgument, store: StoreOption) -> None:
    """Remove a layer, and all layers that were built on it."""
    from obuild.store import removal
    from obuild.store.index import resolve

    opened = open_store(store)
    _stayed(removal.delete(opened, resolve(opened, id), tell=_removing))


@app.command()
@guarded
def clean(store: StoreOption) -> None:
    """Remove all layers, and the machines saved for them. Base images and caches stay."""
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
