"""Read FAT12, FAT16 and FAT32 with long names: Microsoft's FAT32 File System Specification 1.03.

Owners and modes are those that Linux shows without options. Times are taken for UTC.
"""

from __future__ import annotations

import calendar
import re
import stat
import struct
from collections.abc import Iterator

from obuild.errors import ObuildError
from obuild.host.blocks import Blocks
from obuild.host.trees.in_place import InPlace, Place
from obuild.host.trees.nodes import Node, checked, encode, join

_ENTRY = 32
_LONG, _LABEL, _FOLDER = 0x0F, 0x08, 0x10
_DELETED, _KANJI = 0xE5, 0x05

#: Flags of an entry: the name, or its suffix, is in lower case.
_LOWER_NAME, _LOWER_SUFFIX = 0x08, 0x10

#: Larger than any table of a file system that firmware or a boot loader reads.
_LARGEST_TABLE = 64 << 20


class Fat(InPlace):
    """The file system that begins at `start` on the disk. ObuildError if it is damaged."""

    def __init__(self, blocks: Blocks, start: int) -> None:
        self.disk = blocks
        head = blocks.read(start, 512)
        sector, per_cluster, reserved, tables, roots, total, table = struct.unpack_from("<HBHBHHxH", head, 11)
        total = total or struct.unpack_from("<I", head, 32)[0]
        table = table or struct.unpack_from("<I", head, 36)[0]
        if sector not in (512, 1024, 2048, 4096) or not per_cluster or not table:
            raise _damaged("its first sector has wrong sizes")
        self._cluster = sector * per_cluster
        self._root = start + (reserved + tables * table) * sector
        self._root_size = roots * _ENTRY
        self._data = self._root + -(-self._root_size // sector) * sector
        self._count = (total * sector - (self._data - start)) // self._cluster
        self._bits = 12 if self._count < 4085 else 16 if self._count < 65525 else 32
        self._root_cluster = struct.unpack_from("<I", head, 44)[0] if self._bits == 32 else 0
        if table * sector > _LARGEST_TABLE:
            raise _damaged("its table is too large")
        self._table = blocks.read(start + reserved * sector, table * sector)
        if len(self._table) * 8 < (self._count + 2) * self._bits:
            raise _damaged("its table is too small")

    def free(self) -> Iterator[tuple[int, int]]:
        """The free clusters, as offset on the disk and length in bytes. Neighbours are one."""
        table, size = self._table, self._bits // 8
        if self._bits == 12:
            table, size = bytes(self._next(cluster) != 0 for cluster in range(self._count + 2)), 1
        for run in re.finditer(rb"\0+", table[: (self._count + 2) * size]):
            first, end = max(2, -(-run.start() // size)), run.end() // size
            if first < end:
                yield self._data + (first - 2) * self._cluster, (end - first) * self._cluster

    def root(self) -> Node:
        """See `FileSystem.root`."""
        return self._node("", 0, stat.S_IFDIR, self._root_cluster, 0, 0)

    def children(self, folder: Node) -> list[Node]:
        """See `FileSystem.children`."""
        found = sorted(self._entries(folder), key=lambda node: encode(node.name))
        checked(folder, [encode(node.name) for node in found])
        return found

    def target(self, link: Node) -> str:
        """See `FileSystem.target`: there are no links."""
        raise NotImplementedError

    def xattrs(self, node: Node) -> dict[str, bytes]:
        """See `FileSystem.xattrs`."""
        return {}

    def runs(self, file: Node) -> Iterator[Place]:
        """See `InPlace.runs`."""
        offset = 0
        for cluster in self._chain(int.from_bytes(file.raw, "little")):
            if offset >= file.size:
                return
            yield offset, self._data + (cluster - 2) * self._cluster, self._cluster
            offset += self._cluster
        if offset < file.size:
            raise _damaged(f"/{file.path} is cut off")

    def _chain(self, cluster: int) -> Iterator[int]:
        """The clusters from this one on."""
        for _ in range(self._count + 1):
            if not 2 <= cluster < self._count + 2:
                return
            yield cluster
            cluster = self._next(cluster)
        raise _damaged("a chain of clusters has no end")

    def _next(self, cluster: int) -> int:
        if self._bits == 12:
            pair = int.from_bytes(self._table[cluster * 3 // 2 : cluster * 3 // 2 + 2], "little")
            return pair >> 4 if cluster % 2 else pair & 0xFFF
        size = self._bits // 8
        return int.from_bytes(self._table[cluster * size : (cluster + 1) * size], "little") & 0x0FFFFFFF

    def _content(self, folder: Node) -> bytes:
        cluster = int.from_bytes(folder.raw, "little")
        if not cluster:  # only FAT32 has its root in clusters
            return self.disk.read(self._root, self._root_size)
        places = (self._data + (each - 2) * self._cluster for each in self._chain(cluster))
        return b"".join(self.disk.read(place, self._cluster) for place in places)

    def _entries(self, folder: Node) -> Iterator[Node]:
        content, long = self._content(folder), b""
        for at in range(0, len(content) - _ENTRY + 1, _ENTRY):
            entry = content[at : at + _ENTRY]
            if not entry[0]:
                return
            if entry[11] == _LONG and entry[0] != _DELETED:
                long = entry[1:11] + entry[14:26] + entry[28:32] + (b"" if entry[0] & 0x40 else long)
                checksum = entry[13]
                continue
            if entry[0] != _DELETED and not entry[11] & _LABEL and entry[0:1] != b".":
                known = long and checksum == _checksum(entry[:11])
                name = long.decode("utf-16-le", "replace").partition("\0")[0] if known else _short(entry)
                yield self._entry(folder, name, at, entry)
            long = b""

    def _entry(self, folder: Node, name: str, at: int, entry: bytes) -> Node:
        high, time, date, low, size = struct.unpack_from("<HHHHI", entry, 20)
        kind = stat.S_IFDIR if entry[11] & _FOLDER else stat.S_IFREG
        cluster = (high << 16 if self._bits == 32 else 0) | low
        # There are no inodes: the place of the entry stands for one.
        number = int.from_bytes(folder.raw, "little") << 32 | at + 1
        size = size if kind == stat.S_IFREG else 0
        return self._node(join(folder.path, name), number, kind, cluster, size, _time(date, time))

    def _node(self, path: str, inode: int, kind: int, cluster: int, size: int, mtime: int) -> Node:
        return Node(self, path, inode, kind | 0o755, 0, 0, size, mtime, raw=cluster.to_bytes(4, "little"))


def free(disk: Blocks, start: int) -> list[tuple[int, int]]:
    """The free runs of the file system that begins at `start`, as offset on the disk and length in bytes.

    ObuildError if it is damaged.
    """
    return list(Fat(disk, start).free())


def _short(entry: bytes) -> str:
    """The name of an entry without a long one."""
    first = bytes([_DELETED]) if entry[0] == _KANJI else entry[:1]
    name, suffix = ((first + entry[1:8]).decode("cp437").rstrip(), entry[8:11].decode("cp437").rstrip())
    name = name.lower() if entry[12] & _LOWER_NAME else name
    suffix = suffix.lower() if entry[12] & _LOWER_SUFFIX else suffix
    return f"{name}.{suffix}" if suffix else name


def _checksum(name: bytes) -> int:
    """What a long name has of the short one that it belongs to."""
    found = 0
    for byte in name:
        found = (((found & 1) << 7) + (found >> 1) + byte) & 0xFF
    return found


def _time(date: int, time: int) -> int:
    """Seconds since the epoch."""
    day = (1980 + (date >> 9), max(1, date >> 5 & 15), max(1, date & 31))
    try:
        return calendar.timegm((*day, time >> 11, time >> 5 & 63, (time & 31) * 2))
    except ValueError as error:
        raise _damaged("a wrong date") from error


def _damaged(what: str) -> ObuildError:
    return ObuildError(f"the FAT file system is damaged: {what}")
