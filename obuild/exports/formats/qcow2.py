"""A qcow2 image that needs no other file. Clusters compressed by zstd need QEMU 5.1 or newer.

The format is https://www.qemu.org/docs/master/interop/qcow2.html, version 3. (qemu-img takes twice as long.)

    header, and the L1 table
    for each 64 KiB that are not zeros: the data, compressed if that makes it smaller, else in a cluster of its own
    the L2 tables, then the table of counts of references, and the counts
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

from obuild.exports.disk import Disk
from obuild.host import parallel, qemu_img, sparse, zstd

_BITS = 16
_CLUSTER = 1 << _BITS
_ZEROS = bytes(_CLUSTER)
#: How much is compressed at once, in bytes.
_CHUNK = 16 * _CLUSTER

#: More would only take memory.
_WORKERS = 8

#: The header has all fields up to the kind of compression, which bit 3 of the incompatible features announces.
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQIIB7x")
_LENGTH = _HEADER.size
_OTHER_COMPRESSION = 1 << 3
_COPIED, _COMPRESSED = 1 << 63, 1 << 62
#: From this bit on, the entry of a compressed cluster says in how many further sectors it ends.
_SECTORS_AT = 62 - (_BITS - 8)
_SECTOR = 512

_PER_L2 = _CLUSTER // 8
_PER_REFCOUNTS = _CLUSTER // 2

#: QEMU inflates with a window of this many bits, without a header; it deflates at this level, too.
_WINDOW, _LEVEL = -12, -1


def write(disk: Disk, out: Path) -> None:
    """See `Format.write`."""
    kind = disk.options.compression
    if kind == "none":
        qemu_img.pack(disk.path, out, compression=kind, progress=disk.reading())
        return
    compressor = zstd.compressor if kind == "zstd" else _deflater
    with disk.path.open("rb") as source, out.open("w+b") as file:
        _Image(file.fileno(), disk.size, zstd=kind == "zstd").write(
            _compressed(source.fileno(), compressor, disk.reading())
        )


Compress = Callable[[bytes], bytes]
#: Makes a function that one thread may call.
Compressor = Callable[[], Compress]

#: A cluster: its number, its data, and what that is compressed, or None if that is no smaller.
_Packed = tuple[int, bytes, bytes | None]


def _compressed(descriptor: int, compressor: Compressor, heard: Callable[[int], object]) -> Iterator[_Packed]:
    """The clusters of a raw disk that are not all zeros, in order. Holes of the file are not read."""
    workers = min(len(os.sched_getaffinity(0)), _WORKERS)
    chunks = sparse.blocks(descriptor, _CHUNK)
    packed = parallel.in_order(lambda at: _chunk(descriptor, at, compressor()), chunks, workers)
    for number, found in enumerate(packed, 1):
        yield from found
        heard(number * _CHUNK)


def _chunk(descriptor: int, at: int, compress: Compress) -> list[_Packed]:
    data = memoryview(os.pread(descriptor, _CHUNK, at))
    found: list[_Packed] = []
    for start in range(0, len(data), _CLUSTER):
        cluster = bytes(data[start : start + _CLUSTER]).ljust(_CLUSTER, b"\0")
        if cluster != _ZEROS:
            packed = compress(cluster)
            found.append(((at + start) >> _BITS, cluster, packed if len(packed) < _CLUSTER else None))
    return found


def _deflater() -> Compress:
    def compress(data: bytes) -> bytes:
        deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW, 9)
        return deflater.compress(data) + deflater.flush()

    return compress


class _Image:
    """The image in an empty file. `_end` is where the next bytes go."""

    def __init__(self, descriptor: int, size: int, *, zstd: bool) -> None:
        self._file, self._size, self._zstd = descriptor, size, zstd
        self._l1 = [0] * max(1, -(-size // (_CLUSTER * _PER_L2)))
        self._counts: list[int] = []  # of the references to each cluster of the file
        self._end = 0
        self._append(bytes(_CLUSTER))
        self._append(self._l1_table())

    def write(self, clusters: Iterator[_Packed]) -> None:
        for number, group in groupby(clusters, key=lambda each: each[0] // _PER_L2):
            table = [0] * _PER_L2
            for cluster, data, packed in group:
                table[cluster % _PER_L2] = self._append(data) | _COPIED if packed is None else self._pack(packed)
            self._l1[number] = self._append(struct.pack(f">{_PER_L2}Q", *table)) | _COPIED
        os.pwrite(self._file, self._l1_table(), _CLUSTER)
        place, clusters_of_it = self._append_counts()
        header = _HEADER.pack(
            *(b"QFI\xfb", 3, 0, 0, _BITS, self._size, 0),
            *(len(self._l1), _CLUSTER, place, clusters_of_it),
            *(0, 0),  # no snapshots
            *(_OTHER_COMPRESSION if self._zstd else 0, 0, 0),
            *(4, _LENGTH, int(self._zstd)),  # counts have 2⁴ bits
        )
        os.pwrite(self._file, header, 0)

    def _l1_table(self) -> bytes:
        return struct.pack(f">{len(self._l1)}Q", *self._l1)

    def _append(self, data: bytes) -> int:
        """Write whole clusters; returns their place."""
        self._end = len(self._counts) << _BITS
        self._counts += [1] * -(-len(data) // _CLUSTER)
        place = self._write(data)
        self._end = len(self._counts) << _BITS
        return place

    def _pack(self, data: bytes) -> int:
        """Write a compressed cluster right behind what is there; returns its entry."""
        last = self._end + len(data) - 1
        self._counts += [0] * ((last >> _BITS) + 1 - len(self._counts))
        for cluster in range(self._end >> _BITS, (last >> _BITS) + 1):
            self._counts[cluster] += 1
        sectors = last // _SECTOR - self._end // _SECTOR
        return self._write(data) | sectors << _SECTORS_AT | _COMPRESSED

    def _write(self, data: bytes) -> int:
        place = self._end
        os.pwrite(self._file, data, place)
        self._end += len(data)
        return place

    def _append_counts(self) -> tuple[int, int]:
        """Write the counts, and the table of where they are; returns its place and its length, in clusters."""
        used, blocks, tables = len(self._counts), 0, 0
        while blocks * _PER_REFCOUNTS < used + blocks + tables:  # they are counted, too
            blocks += 1
            tables = -(-blocks * 8 // _CLUSTER)
        first = used + tables
        places = [(first + number) << _BITS for number in range(blocks)]
        table = self._append(struct.pack(f">{blocks}Q", *places).ljust(tables << _BITS, b"\0"))
        counts = self._counts + [1] * blocks
        self._append(struct.pack(f">{len(counts)}H", *counts).ljust(blocks << _BITS, b"\0"))
        return table, tables
