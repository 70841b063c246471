"""A stream-optimized VMDK, as vSphere and the clouds import it: compressed, read from front to back.

VMware, "Virtual Disk Format 5.0", 2011. Numbers are little-endian, places are in sectors. (That of qemu-img has
no footer, and ESX refuses it.)

    header, descriptor, and zeros up to grain 0
    for each 64 KiB that are not zeros: a marker with its place on the disk, and the data by zlib
    after each 512 of those: a marker, and the table of where they are
    a marker, and the directory of the tables; a marker, and the footer: the header again, now with the place of
    the directory; the marker of the end
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from obuild.exports.disk import Disk
from obuild.host import sparse

_SECTOR = 512
#: A grain is the unit that is compressed, in sectors.
_GRAIN = 128
_BYTES = _GRAIN * _SECTOR
#: The grains of one table.
_GRAINS = 512
#: Where the first grain is: after header and descriptor.
_FIRST = 128
_DESCRIPTOR_SECTORS = 20

#: Magic, version, flags (line ends are valid, grains are compressed, there are markers), size of the disk, grain,
#: place and size of the descriptor, grains per table, redundant directory, directory, first grain, clean, line
#: ends, compression by deflate.
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
_AT_END = (1 << 64) - 1

_MARKER = struct.Struct("<QII496x")
_TABLE, _DIRECTORY, _FOOTER, _END = 1, 2, 3, 0


def write(disk: Disk, out: Path) -> None:
    """See `Format.write`."""
    with disk.path.open("rb") as source, out.open("wb") as file:
        sectors = -(-disk.size // _SECTOR)
        head = _header(sectors, _AT_END) + descriptor(disk, sectors)
        file.write(head.ljust(_FIRST * _SECTOR, b"\0"))
        tables = [0] * -(-sectors // (_GRAIN * _GRAINS))
        table, number = [0] * _GRAINS, -1
        heard = disk.reading()
        for count, (grain, data) in enumerate(_grains(source)):
            heard(count * _BYTES)
            if number not in (-1, grain // _GRAINS):
                tables[number] = _put_table(file, table)
                table = [0] * _GRAINS
            number = grain // _GRAINS
            table[grain % _GRAINS] = file.tell() // _SECTOR
            packed = zlib.compress(data)
            _pad(file, struct.pack("<QI", grain * _GRAIN, len(packed)) + packed)
        if number != -1:
            tables[number] = _put_table(file, table)
        directory = struct.pack(f"<{len(tables)}I", *tables)
        _put_marker(file, _DIRECTORY, -(-len(directory) // _SECTOR))
        place = file.tell() // _SECTOR
        _pad(file, directory)
        _put_marker(file, _FOOTER, 1)
        file.write(_header(sectors, place))
        _put_marker(file, _END, 0)


def descriptor(disk: Disk, sectors: int) -> bytes:
    """The text that describes the disk, to which VMware gives a new content id whenever it is written."""
    cylinders = min(sectors // (255 * 63), 65535)
    return f"""# Disk DescriptorFile
version=1
CID={content_id(disk)}
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RDONLY {sectors} SPARSE "disk.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.encoding = "UTF-8"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.virtualHWVersion = "13"
""".encode()


def content_id(disk: Disk) -> str:
    """Eight digits that change when the disk does."""
    return f"{disk.id('vmdk').fields[0]:08x}"


def _header(sectors: int, directory: int) -> bytes:
    flags = 1 | 1 << 16 | 1 << 17
    places = (sectors, _GRAIN, 1, _DESCRIPTOR_SECTORS, _GRAINS, 0, directory, _FIRST)
    return _HEADER.pack(b"KDMV", 3, flags, *places, 0, b"\n \r\n", 1)


def _grains(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The number and the data of each grain that is not all zeros. Holes of the file are not read."""
    zeros = bytes(_BYTES)
    for at in sparse.blocks(source.fileno(), _BYTES):
        data = os.pread(source.fileno(), _BYTES, at).ljust(_BYTES, b"\0")
        if data != zeros:
            yield at // _BYTES, data


def _put_table(file: BinaryIO, table: list[int]) -> int:
    """Write a table of grains; returns its place."""
    _put_marker(file, _TABLE, _GRAINS * 4 // _SECTOR)
    place = file.tell() // _SECTOR
    file.write(struct.pack(f"<{_GRAINS}I", *table))
    return place


def _put_marker(file: BinaryIO, kind: int, sectors: int) -> None:
    file.write(_MARKER.pack(sectors, 0, kind))


def _pad(file: BinaryIO, data: bytes) -> None:
    """Write data and zeros up to the next sector."""
    file.write(data.ljust(-(-len(data) // _SECTOR) * _SECTOR, b"\0"))
