"""Remove layers."""

from __future__ import annotations

from typing import Any

import typer

from obuild.console import IdArgument, StoreOption, guarded, open_store
from obuild.errors import ObuildError

app = typer.Typer()


@app.command()
@guarded
def delete(id: IdArgument, store: StoreOption) -> None:
    """Remove a layer, and all layers that were built on it."""
    from obuild import upkeep

    opened = open_store(store)
    _stayed(upkeep.delete(opened, opened.resolve(id), tell=lambda gone: print(f"Removing {gone}")))


@app.command()
@guarded
def clean(store: StoreOption) -> None:
    """Remove all layers. Base images and caches stay."""
    from obuild import upkeep

    gone: list[str] = []

    def tell(id: str) -> None:
        gone.append(id)
        print(f"Removing {id}")

    stayed = upkeep.clean(open_store(store), tell=tell)
    print(f"Removed {len(gone)} {'item' if len(gone) == 1 else 'items'}")
    _stayed(stayed)


def _stayed(ids: list[Any]) -> None:
    if ids:
        raise ObuildError(
            f"{len(ids)} {'layer is' if len(ids) == 1 else 'layers are'} in use and stayed: "
            + ", ".join(id[:12] for id in ids),
            hint="a build is running on them; try again when it has ended",
        )
