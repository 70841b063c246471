"""A dynamic VHDX, as Hyper-V takes it: by qemu-img, with ids that follow from the layer, and an empty log.

Microsoft, [MS-VHDX]. Numbers are little-endian.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from obuild.errors import ObuildError
from obuild.exports.disk import Disk
from obuild.host import qemu_img

#: Where the two headers are, of which the one with the larger sequence number counts.
_HEADERS = (64 << 10, 128 << 10)
_HEADER_SIZE = 4096
#: Checksum, sequence number, ids of file writes, data writes and log.
_HEADER = struct.Struct("<4xIQ16s16s16s")
_LOG = struct.Struct("<68xIQ")  # length and offset of the log

_REGIONS = 192 << 10
_ENTRY = struct.Struct("<16sQII")
_METADATA_REGION = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_ITEM = struct.Struct("<16sII8x")
_PAGE83 = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")


def write(disk: Disk, out: Path) -> None:
    """See `Format.write`."""
    qemu_img.convert_raw(disk.path, out, "vhdx", progress=disk.reading())
    with out.open("r+b") as file:
        for number, place in enumerate(_HEADERS):
            _settle_header(file, place, number, disk)
        file.seek(_page83(file))
        file.write(disk.id("vhdx disk").bytes_le)


def _settle_header(file: BinaryIO, place: int, number: int, disk: Disk) -> None:
    file.seek(place)
    header = bytearray(file.read(_HEADER_SIZE))
    ids = (disk.id("vhdx file").bytes_le, disk.id("vhdx data").bytes_le, bytes(16))
    _HEADER.pack_into(header, 0, 0, number + 1, *ids)
    header[:4] = b"head"
    header[4:8] = crc32c(header).to_bytes(4, "little")
    file.seek(place)
    file.write(header)
    length, offset = _LOG.unpack_from(header)
    file.seek(offset)
    file.write(bytes(length))


def _page83(file: BinaryIO) -> int:
    """Where the metadata have the id of the disk. ObuildError if they have none."""
    regions = _region_entries(file)
    start = regions.get(_METADATA_REGION, 0)
    file.seek(start)
    table = file.read(64 << 10)
    (count,) = struct.unpack_from("<H", table, 10)
    for index in range(count):
        item, offset, _ = _ITEM.unpack_from(table, 32 + 32 * index)
        if UUID(bytes_le=item) == _PAGE83:
            return start + int(offset)
    raise ObuildError("qemu-img has made a VHDX without an id of its disk")


def _region_entries(file: BinaryIO) -> dict[UUID, int]:
    """Where each region of the file begins."""
    file.seek(_REGIONS)
    table = file.read(64 << 10)
    (count,) = struct.unpack_from("<I", table, 8)
    found = (_ENTRY.unpack_from(table, 16 + 32 * index) for index in range(count))
    return {UUID(bytes_le=id): offset for id, offset, _, _ in found}


def crc32c(data: bytes | bytearray) -> int:
    """CRC-32C (Castagnoli), as iSCSI has it: RFC 3720, B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = tuple(map(_entry, range(256)))
