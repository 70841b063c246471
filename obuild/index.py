"""What the store remembers in SQLite: when, how long, how big. It can be rebuilt from result/ at any time.

The only importer of sqlite_utils.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import sqlite_utils

from obuild import locks
from obuild.errors import StoreError
from obuild.plan import LayerId
from obuild.store import Store

#: How long to wait for another process that writes, in seconds.
BUSY_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Row:
    """One layer. `created` is in seconds since the epoch, `size` in bytes on disk, of this layer alone."""

    id: LayerId
    parent: LayerId | None
    op: str
    created: float
    seconds: float
    size: int


class Index:
    """The open database; a context manager. StoreError if it cannot be used."""

    def __init__(self, store: Store) -> None:
        self._store = store
        path = store.state / "db" / "db.sqlite"
        try:
            path.parent.mkdir(exist_ok=True)
            # SQLite does not wait while another process switches the journal or makes the table
            with locks.file_lock(store.locks / "db.lock"):
                self._open(path)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"cannot open the index {path}: {error}",
                hint=f"it can be rebuilt: remove {path}, nothing is lost",
            ) from error

    def _open(self, path: Path) -> None:
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT)
        connection.execute("PRAGMA journal_mode=WAL")
        self._db = sqlite_utils.Database(connection)
        self._layers = self._db.table("layers")
        columns = {"id": str, "parent": str, "op": str, "created": float, "seconds": float, "size": int}
        self._layers.create(columns, pk="id", if_not_exists=True)

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"the store's index: {error}") from error

    def add(self, id: LayerId, parent: LayerId | None, op: str, created: float, seconds: float) -> None:
        """Remember a layer that is in result/."""
        size = disk_usage(self._store, id)
        row = {"id": id, "parent": parent, "op": op, "created": created, "seconds": seconds, "size": size}
        self._layers.upsert(row, pk="id")

    def rows(self) -> list[Row]:
        """All layers that are in result/, oldest first; the index is put right on the way."""
        self._sync()
        return [Row(**row) for row in self._layers.rows_where(order_by="created, id")]

    def _sync(self) -> None:
        """Add the layers that a crash left without a row, drop the rows whose layer is gone."""
        there = {layer.id: layer for layer in self._store.layers()}
        known = {row["id"] for row in self._layers.rows_where(select="id")}
        for id in there.keys() - known:
            created = there[id].path.stat().st_mtime
            self.add(id, there[id].parent, "", created, 0.0)
        for id in known - there.keys():
            self._layers.delete(id)


def disk_usage(store: Store, id: LayerId) -> int:
    """Bytes that a layer takes on disk, holes left out; 0 if it is gone."""
    folder = store.result / id
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*")) if folder.exists() else 0
