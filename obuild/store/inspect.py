"""Describe layers: what made one, its parents and children, when, how big."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from obuild.errors import StoreError
from obuild.plan import diff, keys
from obuild.plan.keys import Fields, LayerId
from obuild.store.index import Index, Row
from obuild.store.layers import Store


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A parent or a child of a layer."""

    id: LayerId
    op: str


@dataclass(frozen=True, slots=True)
class Description:
    """One layer. Times are seconds since the epoch, sizes are bytes on disk.

    `seconds` is None if it is not known how long it took; `parents` go down to the base; `total` is the size
    of the layer and all its parents.
    """

    id: LayerId
    op: str
    key: Fields
    parents: tuple[Neighbour, ...]
    children: tuple[Neighbour, ...]
    created: float
    used: float
    seconds: float | None
    size: int
    total: int
    log_size: int
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """One layer in a list. Times and `seconds` as in Description; `size` is of this layer alone."""

    id: LayerId
    parent: LayerId | None
    op: str
    created: float
    seconds: float | None
    size: int
    used: float
    tags: tuple[str, ...]


def listing(store: Store, newest: int | None) -> tuple[list[Listed], int]:
    """All layers, or the `newest` so many, the oldest first; and the number of older ones left out."""
    with Index(store) as index:
        rows = index.rows(newest)
        more = 0 if newest is None else index.count() - len(rows)
    tags = store.tags.by_layer()
    listed = []
    for row in rows:
        with suppress(FileNotFoundError):  # it was just removed
            used = (store.result / row.id).stat().st_mtime
            op = _op(store, row)
            tagged = tuple(tags.get(row.id, ()))
            listed.append(Listed(row.id, row.parent, op, row.created, _seconds(row), row.size, used, tagged))
    return listed, max(0, more)


def describe(store: Store, id: LayerId) -> Description:
    """Describe the layer `id`. StoreError if it was just removed."""
    with Index(store) as index:
        row, below, above = index.get(id), index.ancestors(id), index.children(id)
    try:
        if row is None:
            raise FileNotFoundError(id)
        layer = store.layer(id)
        return Description(
            id=id,
            op=_op(store, row),
            key=keys.fields(layer.key),
            parents=_neighbours(store, below),
            children=_neighbours(store, above),
            created=row.created,
            used=layer.path.stat().st_mtime,
            seconds=_seconds(row),
            size=row.size,
            total=row.size + sum(other.size for other in below),
            log_size=layer.log.stat().st_size,
            tags=tuple(store.tags.by_layer().get(id, ())),
        )
    except FileNotFoundError as error:
        raise StoreError(f"layer {id} was just removed from the store") from error


def _neighbours(store: Store, rows: Iterable[Row]) -> tuple[Neighbour, ...]:
    return tuple(Neighbour(row.id, _op(store, row)) for row in rows)


def _op(store: Store, row: Row) -> str:
    """The op as written; from the key, if the layer's builder died before it added the row."""
    return row.op or diff.summary(keys.fields(store.layer(row.id).key))


def _seconds(row: Row) -> float | None:
    return row.seconds if row.op else None
