"""RPM's packages: a table of headers in SQLite, as rpm has it since 4.16.

A header: https://rpm-software-management.github.io/rpm/manual/format_header.html
"""

from __future__ import annotations

import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from obuild.errors import ObuildError, UsageError
from obuild.exports.packages.package import Package
from obuild.host.trees.nodes import Tree

_FOLDERS = ("var/lib/rpm", "usr/lib/sysimage/rpm", "usr/share/rpm")
_SQLITE = "rpmdb.sqlite"

#: Older databases, and what they are in.
_OLDER = {"Packages.db": "ndb", "Packages": "Berkeley DB"}

_NAME, _VERSION, _RELEASE, _EPOCH, _LICENSE, _ARCH, _SOURCE = 1000, 1001, 1002, 1003, 1014, 1022, 1044
_INT32, _STRING, _I18N = 4, 6, 9

_LARGEST = 1 << 30


def read(tree: Tree) -> list[Package] | None:
    """See `Database.read`."""
    for folder in _FOLDERS:
        database = tree.read(f"{folder}/{_SQLITE}", most=_LARGEST)
        if database is not None:
            journal = tree.read(f"{folder}/{_SQLITE}-wal", most=_LARGEST) or b""
            return [package for header in _headers(database, journal) if (package := _package(header)) is not None]
        for name, format in _OLDER.items():
            if tree.find(f"{folder}/{name}") is not None:
                raise UsageError(f"the layer's rpm database is in {format}, which obuild cannot read: only SQLite")
    return None


def _headers(database: bytes, journal: bytes) -> Iterator[bytes]:
    with tempfile.TemporaryDirectory(prefix="obuild-rpm-") as folder:
        path = Path(folder) / _SQLITE
        path.write_bytes(database)
        path.with_name(f"{_SQLITE}-wal").write_bytes(journal)
        try:
            with closing(sqlite3.connect(path)) as opened:
                for (blob,) in opened.execute("SELECT blob FROM Packages ORDER BY hnum"):
                    yield bytes(blob)
        except (sqlite3.Error, TypeError) as error:
            raise ObuildError(f"the layer's rpm database is damaged: {error}") from error


def _package(header: bytes) -> Package | None:
    """The package of a header; None for a public key, which rpm keeps as a package, too."""
    try:
        fields = _fields(header)
    except (struct.error, ValueError, IndexError) as error:
        raise ObuildError(f"the layer's rpm database is damaged: {error}") from error
    name = fields.get(_NAME, "")
    if not name or name == "gpg-pubkey":
        return None
    version = f"{fields.get(_VERSION, '')}-{fields.get(_RELEASE, '')}"
    epoch, license = fields.get(_EPOCH, ""), fields.get(_LICENSE, "")
    return Package("rpm", name, version, fields.get(_ARCH, ""), epoch, license, fields.get(_SOURCE, ""))


def _fields(header: bytes) -> dict[int, str]:
    """The texts and numbers of a header, by their tags; of a list, the first."""
    entries, size = struct.unpack_from(">II", header)
    if 8 + entries * 16 + size > len(header):
        raise ValueError("a header is cut off")
    data = header[8 + entries * 16 :]
    found = {}
    for index in range(entries):
        tag, kind, offset, _ = struct.unpack_from(">IIII", header, 8 + index * 16)
        if kind in (_STRING, _I18N):
            found[tag] = data[offset : data.index(b"\0", offset)].decode("utf-8", "replace")
        elif kind == _INT32:
            found[tag] = str(struct.unpack_from(">I", data, offset)[0])
    return found
