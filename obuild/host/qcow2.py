"""Write a qcow2 image whose content is known before its bytes are: they may come in any order, from any thread.

The format is https://www.qemu.org/docs/master/interop/qcow2.html, version 3 with extended L2 entries, which the
store's overlays have, too. Each block of 4 KiB holds data, reads as zeros, or is left to the image below.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

#: A cluster has 32 subclusters, the blocks, which are as large as QEMU's defaults for overlays here make them.
CLUSTER, BLOCK = 128 << 10, 4096

#: The largest disk, in bytes: larger ones would need a table of many MiB before they hold anything.
LARGEST = 64 << 40

_BITS = CLUSTER.bit_length() - 1
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_ENTRY = struct.Struct(">QQ")
_EXTENDED_L2 = 1 << 4
_BACKING_FORMAT = struct.pack(">II8s", 0xE2792ACA, 5, b"qcow2")
_END = bytes(8)
_COPIED = 1 << 63
_PER_L2 = CLUSTER // _ENTRY.size
_PER_REFCOUNTS = CLUSTER // 2

#: A part of a disk: where it begins, and its length, in bytes.
Extent = tuple[int, int]


class Writer:
    """A new image at `path`: where each byte of `data` goes is settled, and `write` puts it there."""

    def __init__(
        self,
        path: Path,
        size: int,
        data: Iterable[Extent],
        zeros: Iterable[Extent] = (),
        *,
        backing: str = "",
        go_on: bool = False,
    ) -> None:
        """`data` and `zeros` are in whole blocks, except at the end of the disk, and do not overlap.

        `backing` is written as given, relative to the folder of `path`. Without it, what is not data is zeros.
        To `go_on`, the file may be there: what another writer of the same data has written is kept.
        """
        self._bits: dict[int, int] = {}  # by number of the cluster: 32 bits for data, and 32 for zeros
        for extents, shift in ((data, 0), (zeros, 32)):
            for start, length in extents:
                self._mark(start, length, shift)
        self._tables = sorted({cluster // _PER_L2 for cluster in self._bits})
        filled = sorted(cluster for cluster, bits in self._bits.items() if bits & 0xFFFFFFFF)
        self._first = self._head_clusters(size, len(filled))
        self._place = {cluster: self._first + number for number, cluster in enumerate(filled)}
        new = os.O_NOFOLLOW if go_on else os.O_EXCL
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | new, 0o644)
        try:
            length = (self._first + len(filled)) * CLUSTER
            if os.fstat(self._file).st_size != length:  # that of other data
                os.truncate(self._file, 0)
            os.truncate(self._file, length)
            self._write_head(size, backing.encode("utf-8", "surrogateescape"))
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)

    def write(self, offset: int, content: bytes | memoryview) -> None:
        """Write to the disk, inside of what was announced as data."""
        done = 0
        while done < len(content):
            at, length = self._run(offset + done, len(content) - done)
            done += os.pwrite(self._file, content[done : done + length], at)

    def read(self, offset: int, length: int) -> bytes:
        """Read from the disk, inside of what was announced as data."""
        pieces: list[bytes] = []
        while length:
            pieces.append(os.pread(self._file, *reversed(self._run(offset, length))))
            offset, length = offset + len(pieces[-1]), length - len(pieces[-1])
        return b"".join(pieces)

    def _run(self, offset: int, most: int) -> tuple[int, int]:
        """Where a byte of the disk is in the file, and how many bytes from there on follow each other in both."""
        cluster, inside = divmod(offset, CLUSTER)
        length = min(CLUSTER - inside, most)
        # Neighbours on the disk are mostly neighbours in the file, too.
        while length < most and self._follows(cluster, inside + length):
            length += min(CLUSTER, most - length)
        return self._place[cluster] * CLUSTER + inside, length

    def _follows(self, cluster: int, length: int) -> bool:
        """Whether what comes after `length` bytes, from the beginning of a cluster, is next in the file, too."""
        ahead = length >> _BITS
        return self._place.get(cluster + ahead) == self._place[cluster] + ahead

    def _mark(self, start: int, length: int, shift: int) -> None:
        first, last = start // BLOCK, -(-(start + length) // BLOCK)
        while first < last:
            cluster, inside = divmod(first, 32)
            count = min(32 - inside, last - first)
            self._bits[cluster] = self._bits.get(cluster, 0) | ((1 << count) - 1) << inside + shift
            first += count

    def _head_clusters(self, size: int, filled: int) -> int:
        """How many clusters come before the data: header, L1, L2 tables, and the counts of references.

        The counts come last, as many as all clusters need, these included.
        """
        self._l1_entries = max(1, -(-size // (CLUSTER * _PER_L2)))
        self._l1_clusters = -(-self._l1_entries * 8 // CLUSTER)
        before = 1 + self._l1_clusters + len(self._tables)
        self._refcounts = 0
        while True:
            self._refcount_table = max(1, -(-self._refcounts * 8 // CLUSTER))
            total = before + self._refcount_table + self._refcounts + filled
            needed = -(-total // _PER_REFCOUNTS)
            if needed <= self._refcounts:
                return before + self._refcount_table + self._refcounts
            self._refcounts = needed

    def _write_head(self, size: int, backing: bytes) -> None:
        tables = 1 + self._l1_clusters
        table = tables + len(self._tables)
        extensions = (_BACKING_FORMAT if backing else b"") + _END
        header = _HEADER.pack(
            *(b"QFI\xfb", 3),
            *((_HEADER.size + len(extensions), len(backing)) if backing else (0, 0)),
            *(_BITS, size, 0),
            *(self._l1_entries, CLUSTER),
            *(table * CLUSTER, self._refcount_table),
            *(0, 0),  # no snapshots
            *(_EXTENDED_L2, 0, 0),
            *(4, _HEADER.size),  # counts have 2⁴ bits
        )
        os.pwrite(self._file, header + extensions + backing, 0)
        for number, l1_index in enumerate(self._tables):
            place = (tables + number) * CLUSTER
            os.pwrite(self._file, struct.pack(">Q", place | _COPIED), CLUSTER + l1_index * 8)
            os.pwrite(self._file, self._l2(l1_index), place)
        first = table + self._refcount_table
        places = [(first + number) * CLUSTER for number in range(self._refcounts)]
        os.pwrite(self._file, struct.pack(f">{len(places)}Q", *places), table * CLUSTER)
        total = self._first + len(self._place)
        for number, place in enumerate(places):
            count = min(_PER_REFCOUNTS, total - number * _PER_REFCOUNTS)
            os.pwrite(self._file, b"\0\1" * count, place)

    def _l2(self, l1_index: int) -> bytes:
        table = bytearray(CLUSTER)
        first = l1_index * _PER_L2
        for index in range(_PER_L2):
            bits = self._bits.get(first + index)
            if bits:
                place = self._place.get(first + index)
                entry = place * CLUSTER | _COPIED if place is not None else 0
                _ENTRY.pack_into(table, index * _ENTRY.size, entry, bits)
        return bytes(table)
