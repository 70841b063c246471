"""The index of layers in SQLite: when, how long, how big. It can be rebuilt from result/ at any time.

Only this module imports SQLite and sqlite_utils. Every query first makes sure that the rows match result/, which
costs one stat(2) as long as no layer was added or removed; docs/design.md argues why that is enough.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from types import TracebackType
from typing import NamedTuple

from obuild.errors import StoreError, words
from obuild.host import imports, locks, stamp
from obuild.host.regular import NotAFile, is_file
from obuild.plan.keys import LayerId
from obuild.store import usage
from obuild.store.layers import Store
from obuild.store.usage import no_space

#: How long to wait for another process that is writing, in seconds.
BUSY_TIMEOUT = 30.0

#: The hint if that was not long enough.
HELD = "another process is writing to it; try again when that has finished"

#: The schema version. A database with another one gets new tables, and keeps the rows that it can.
VERSION = 1

#: How many layers without a row are read while other writers wait. If there are more, they are read before.
FEW = 100

_COLUMNS = {"id": str, "parent": str, "op": str, "created": float, "seconds": float, "size": int}
_LAYER = ", ".join(_COLUMNS)
_PUT = f"INSERT OR REPLACE INTO layers ({_LAYER}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Row(NamedTuple):
    """One layer; the fields are the columns.

    `created` is in seconds since the epoch, `size` in bytes on disk, of this layer alone. If the layer's builder
    died before it added the row, `op` is empty and `seconds` is meaningless.
    """

    id: LayerId
    parent: LayerId | None
    op: str
    created: float
    seconds: float
    size: int


class Kin(NamedTuple):
    """The fields needed to choose some of all layers: `created` in seconds, `size` in bytes."""

    parent: LayerId | None
    size: int
    created: float


class Index:
    """The open database; a context manager. StoreError if it cannot be used."""

    def __init__(self, store: Store, *, wait: float = BUSY_TIMEOUT) -> None:
        self._store = store
        self._wait = wait
        self._path = store.state / "db" / "db.sqlite"
        try:
            if not store.writable:
                self._open_copy()
                return
            self._path.parent.mkdir(exist_ok=True)
            # SQLite does not wait while another process switches the journal mode or creates the table
            with self._alone():
                try:
                    self._open()
                except (sqlite3.DatabaseError, NotAFile) as error:
                    if not _is_damage(error):
                        raise
                    self._set_aside()
                    self._open()
        except (sqlite3.Error, OSError) as error:
            if _is_full(error, store):
                raise no_space(store.root, words(error)) from error
            hint = HELD if _is_busy(error) else f"it can be rebuilt: remove {self._path}, nothing is lost"
            raise StoreError(f"cannot open the index {self._path}: {words(error)}", hint=hint) from error

    def _open(self) -> None:
        if os.path.lexists(self._path) and not is_file(self._path):  # SQLite would follow a symlink
            raise NotAFile(self._path)
        self._db = sqlite3.connect(self._path, timeout=self._wait, isolation_level=None)
        try:
            self._inode = self._path.stat().st_ino
            self._db.execute("PRAGMA journal_mode=WAL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                self._lay_out()
        except BaseException:
            self._db.close()
            raise

    def _open_copy(self) -> None:
        """For a read-only store: a copy of the database in memory, empty if it cannot be read.

        If SQLite cannot create files beside a database, it reads it only as `immutable`. It then ignores what is
        in a journal: those layers are read from result/, like others without a row.
        """
        for how in ("mode=ro", "mode=ro&immutable=1", ""):
            self._db = sqlite3.connect(":memory:", isolation_level=None)
            self._inode = 0
            try:
                if how and is_file(self._path):
                    with closing(sqlite3.connect(f"{self._path.as_uri()}?{how}", uri=True)) as database:
                        database.backup(self._db)
                (version,) = self._db.execute("PRAGMA user_version").fetchone()
                if version != VERSION:
                    self._lay_out()
                return
            except sqlite3.Error:
                self._db.close()
                if not how:
                    raise

    def _lay_out(self) -> None:
        """Create the tables. Rows of another version's database are kept if they have our columns."""
        with imports.without("numpy", "pandas"):  # for types that we do not store
            import sqlite_utils  # late: slow to import, and needed once in a store's life

        database = sqlite_utils.Database(self._db)
        layers = database.table("layers")
        if layers.exists() and layers.columns_dict != _COLUMNS:
            layers.drop()
        layers.create(_COLUMNS, pk="id", if_not_exists=True)
        layers.create_index(["parent"], if_not_exists=True)
        layers.create_index(["created", "id"], if_not_exists=True)
        database.table("seen").drop(ignore=True)
        database.table("seen").create({"stamp": str})  # as text: an inode number may be too large for SQLite
        self._db.execute(
            f"PRAGMA user_version={VERSION}"
        )  # last: after a crash before this, the tables are made again

    def _set_aside(self) -> None:
        """Move a damaged database away; the caller holds the lock. What others still write to it is lost."""
        import logging

        aside = self._path.with_name("damaged.sqlite")
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).replace(aside.with_name(aside.name + suffix))
        logging.getLogger("obuild").warning(
            "the store's index was damaged and is made again from the layers; the old one is %s", aside
        )

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        if not isinstance(error, sqlite3.Error):
            return
        if _is_full(error, self._store):
            raise no_space(self._store.root, str(error)) from error
        hint = f"it can be rebuilt: remove {self._path}, nothing is lost"
        if _is_damage(error):
            with suppress(OSError), self._alone():
                if self._path.stat().st_ino == self._inode:  # else another process has moved it
                    self._set_aside()
            hint = "try again"
        if _is_busy(error):
            hint = HELD
        raise StoreError(f"the store's index: {error}", hint=hint) from error

    # -- writing

    def add(self, id: LayerId, parent: LayerId | None, op: str, created: float, seconds: float) -> None:
        """Add a row for a layer in result/, unless the layer was removed meanwhile."""
        words = op.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")  # SQLite wants text
        row = Row(id, parent, words, created, seconds, disk_usage(self._store, id))
        with self._writing():
            if self._store.find(
                id
            ):  # checked inside the transaction: a row cannot be added after the sync that would drop it
                self._db.execute(_PUT, row)

    def problems(self, but: Collection[str] = ()) -> list[str]:
        """How the rows differ from result/ or violate SQLite's rules, in words. Corrects nothing.

        Rows of the layers `but`, which are damaged themselves, are not compared. Layers added or removed since the
        last query are not a problem: the next query handles them. Sizes are not compared: those of a copied store
        differ.
        """
        found = [str(line) for (line,) in self._db.execute("PRAGMA integrity_check") if line != "ok"]
        parents = dict(self._db.execute("SELECT id, parent FROM layers"))
        there = set(self._store.ids())
        if self._in_step():
            if missing := there - parents.keys():
                found.append(f"the index lacks {len(missing)} of the layers")
            if gone := parents.keys() - there:
                found.append(f"the index has {len(gone)} layers that are gone")
        for id in sorted((there & parents.keys()).difference(but)):
            now = self._found(id)
            if now is not None and parents[id] != now.parent:
                found.append(f"the index has another parent for the layer {id}")
        return found

    def rebuild(self) -> None:
        """Correct the rows from result/; ops and durations, which are recorded nowhere else, are kept."""
        now = [row for id in self._store.ids() if (row := self._found(id)) is not None]
        with self._writing():
            values = [(row.parent, row.size, row.id) for row in now]
            self._db.executemany("UPDATE layers SET parent = ?, size = ? WHERE id = ?", values)
            self._db.execute("DELETE FROM seen")
        self._sync()

    def _sync(self) -> None:
        """Make sure that there is exactly one row for each layer in result/."""
        if self._in_step():
            return
        ready: dict[str, Row | None] = {}
        while late := self._catch_up(ready):
            ready.update((id, self._found(id)) for id in late)

    def _in_step(self) -> bool:
        """Whether result/ is unchanged since the rows last matched it."""
        seen = self._db.execute("SELECT stamp FROM seen").fetchone()
        return bool(seen == (str(stamp.of_folder(self._store.result)),))

    def _catch_up(self, ready: Mapping[str, Row | None]) -> Collection[str]:
        """Add rows for layers without one, drop rows without a layer, and record the stamp of result/.

        If many layers are not in `ready`, only return them: reading each takes time, and other writers wait.
        """
        with self._writing():
            now, seen = _now(self._store), stamp.of_folder(self._store.result)
            there = set(self._store.ids())
            known = {id for (id,) in self._db.execute("SELECT id FROM layers")}
            missing = sorted(there - known)
            late = [id for id in missing if id not in ready]
            if len(late) > FEW:
                return late
            # one that was being removed when it was read may have been made again
            rows = (ready.get(id) or self._found(id) for id in missing)
            self._db.executemany(_PUT, filter(None, rows))
            self._db.executemany("DELETE FROM layers WHERE id = ?", [(id,) for id in known - there])
            self._db.execute("DELETE FROM seen")
            if seen[2] < now:  # else another change in the same tick of the clock would have the same stamp
                self._db.execute("INSERT INTO seen VALUES (?)", (str(seen),))
        return ()

    def _found(self, id: str) -> Row | None:
        """The row for a layer that has none; None if it was just removed."""
        layer = self._store.layer(LayerId(id))
        try:
            created = (layer.path / "key").lstat().st_mtime
            return Row(layer.id, layer.parent, "", created, 0.0, disk_usage(self._store, layer.id))
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction that excludes other writers."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite may have rolled back itself, as on a full disk
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with locks.file_lock(self._store.locks / "db.lock"):
            yield

    # -- looking

    def rows(self, newest: int | None = None) -> list[Row]:
        """All layers, or the `newest` so many; the oldest first."""
        limit = -1 if newest is None else min(newest, sys.maxsize)  # SQLite takes no more
        return self._select("ORDER BY created DESC, id DESC LIMIT ?", limit)[::-1]

    def count(self) -> int:
        """The number of layers."""
        self._sync()
        (count,) = self._db.execute("SELECT count(*) FROM layers").fetchone()
        return int(count)

    def size(self) -> int:
        """The size of all layers with a row, in bytes. It is quick, and may lack those added last."""
        (size,) = self._db.execute("SELECT coalesce(sum(size), 0) FROM layers").fetchone()
        return int(size)

    def get(self, id: LayerId) -> Row | None:
        """One layer; None if it is not in the store."""
        return next(iter(self._select("WHERE id = ?", id)), None)

    def children(self, id: LayerId | None) -> list[Row]:
        """The layers built directly on one, the oldest first; for None, the bases' layers."""
        return self._select("WHERE parent IS ? ORDER BY created, id", id)

    def ancestors(self, id: LayerId) -> list[Row]:
        """The ancestors of a layer, its parent first."""
        found = []
        row = self.get(id)
        while row is not None and row.parent is not None:
            row = self.get(row.parent)
            if row is not None:
                found.append(row)
        return found

    def all_kin(self) -> dict[LayerId, Kin]:
        """All layers, in no particular order."""
        self._sync()
        return {id: Kin(*kin) for id, *kin in self._db.execute("SELECT id, parent, size, created FROM layers")}

    def starting(self, prefix: str) -> Collection[LayerId]:
        """The ids that begin with `prefix` (hex digits); all ids if listing result/ is cheaper than a sync."""
        if not self._in_step():
            return self._store.ids()
        query = "SELECT id FROM layers WHERE id >= ? AND id < ?"
        return [LayerId(id) for (id,) in self._db.execute(query, (prefix, prefix + "g"))]

    def _select(self, how: str, *values: object) -> list[Row]:
        self._sync()
        return [Row(*row) for row in self._db.execute(f"SELECT {_LAYER} FROM layers {how}", values)]


def resolve(store: Store, prefix: str, *, drafts: bool = False) -> LayerId:
    """Like Store.resolve, but does not list a large store."""

    def starting(prefix: str) -> Collection[LayerId]:
        with suppress(StoreError), Index(store) as index:
            return index.starting(prefix)
        return store.ids()  # ids are found without the index

    return store.resolve(prefix, drafts=drafts, starting=starting)


def disk_usage(store: Store, id: LayerId) -> int:
    """The size of a layer on disk in bytes, without holes; 0 if it is gone."""
    return usage.within(store.result / id)


def _now(store: Store) -> int:
    """The current time in ns, by the clock and in the ticks of result/'s file system.

    For a read-only store, any later time: its index lasts only as long as the command.
    """
    if not store.writable:
        return sys.maxsize
    os.utime(store.result_tmp)
    return store.result_tmp.stat().st_mtime_ns


def _is_full(error: Exception, store: Store) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    # if there is no space for SQLite's own files, it reports an I/O error
    return code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and os.statvfs(store.root).f_bavail == 0)


def _is_damage(error: sqlite3.Error | NotAFile) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte of an extended code
    return isinstance(error, NotAFile) or code in _DAMAGED


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
