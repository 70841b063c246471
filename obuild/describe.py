"""All that is known of one layer: what made it, what it stands on and what stands on it, when, how big."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from obuild import explain
from obuild.errors import StoreError
from obuild.explain import Fields
from obuild.index import Index, Row
from obuild.plan import LayerId
from obuild.store import Layer, Store


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A layer above or below."""

    id: LayerId
    op: str


@dataclass(frozen=True, slots=True)
class Description:
    """One layer. Times are seconds since the epoch, sizes are bytes on disk.

    `seconds` is None if nobody remembers how long it took; `parents` go down to the base; `total` is the size
    of the layer and of all its parents.
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


def describe(store: Store, id: LayerId) -> Description:
    """What is known of the layer `id`. StoreError if it has just been removed."""
    with Index(store) as index:
        rows = {row.id: row for row in index.rows()}
    try:
        row, layer = rows[id], Layer(id, store.result / id)
        below = list(_below(row, rows))
        return Description(
            id=id,
            op=_op(store, row),
            key=explain.fields(layer.key),
            parents=_neighbours(store, below),
            children=_neighbours(store, (other for other in rows.values() if other.parent == id)),
            created=row.created,
            used=layer.path.stat().st_mtime,
            seconds=row.seconds if row.op else None,
            size=row.size,
            total=row.size + sum(other.size for other in below),
            log_size=layer.log.stat().st_size,
        )
    except (KeyError, FileNotFoundError) as error:
        raise StoreError(f"layer {id} was just removed from the store") from error


def _below(row: Row, rows: dict[LayerId, Row]) -> Iterator[Row]:
    """The layers that a layer stands on, the nearest first."""
    while row.parent is not None:
        row = rows[row.parent]
        yield row


def _neighbours(store: Store, rows: Iterable[Row]) -> tuple[Neighbour, ...]:
    return tuple(Neighbour(row.id, _op(store, row)) for row in rows)


def _op(store: Store, row: Row) -> str:
    """The op as written; as the key has it for a layer whose builder did not live to remember it."""
    return row.op or explain.summary(explain.fields(Layer(row.id, store.result / row.id).key))
