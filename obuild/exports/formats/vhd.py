"""A VHD: fixed, as Azure takes it, which is the raw disk in whole MiB and a footer of one sector; or dynamic.

Microsoft, "Virtual Hard Disk Image Format Specification", 2006. Numbers are big-endian.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from obuild.errors import UsageError
from obuild.exports.disk import Disk
from obuild.guests.profile import Card
from obuild.host import qemu_img, units

#: The largest VHD, in bytes.
LARGEST = 2040 << 30

#: Azure wants the disk in whole MiB.
_UNIT = 1 << 20

#: Cookie, features (a reserved bit), version, next structure (none), time, creator and its version, its system,
#: size when made, size, cylinders, heads, sectors, type 2 (fixed), checksum, id, saved state.
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")

#: Programs that read VHDs believe the size for creators that they know, else the geometry, which is smaller.
_CREATOR = b"qem2"


#: Where the footer has the time and the checksum, and where the id.
_TIME, _CHECKSUM, _ID = 24, 64, 68
_SECTOR = 512


def check(size: int, card: Card) -> None:
    """UsageError if a disk is too large for the format."""
    if size > LARGEST:
        raise UsageError(
            f"a VHD holds {units.size(LARGEST)} at most, and the disk has {units.size(size)}",
            hint="--type vhdx holds 64 TiB",
        )


def write(disk: Disk, out: Path) -> None:
    """See `Format.write`."""
    qemu_img.copy(disk.path, out)
    size = -(-disk.size // _UNIT) * _UNIT
    with out.open("r+b") as file:
        file.truncate(size)
        file.seek(size)
        file.write(footer(size, disk.id("vhd").bytes))


def write_dynamic(disk: Disk, out: Path) -> None:
    """As `write`, but with the blocks that hold data only, and of the disk's own size. By qemu-img, which puts the
    time and a random id into the footer and into the copy of it that comes first.
    """
    options = "subformat=dynamic,force_size=on"
    qemu_img.convert_raw(disk.path, out, "vpc", options, progress=disk.reading())
    with out.open("r+b") as file:
        settled = bytearray(file.read(_SECTOR))
        settled[_TIME : _TIME + 4] = bytes(4)
        settled[_ID : _ID + 16] = disk.id("vhd").bytes
        settled[_CHECKSUM : _CHECKSUM + 4] = bytes(4)
        settled[_CHECKSUM : _CHECKSUM + 4] = _checksum(settled).to_bytes(4, "big")
        for place, end in ((0, os.SEEK_SET), (-_SECTOR, os.SEEK_END)):
            file.seek(place, end)
            file.write(settled)


def footer(size: int, id: bytes) -> bytes:
    """The footer of a fixed disk of `size` bytes; its checksum is the complement of the sum of all other bytes."""
    cylinders, heads, sectors = geometry(size // 512)
    fields = (b"conectix", 2, 0x10000, (1 << 64) - 1, 0, _CREATOR, 0x50003, b"Wi2k", size, size)
    made = _FOOTER.pack(*fields, cylinders, heads, sectors, 2, 0, id, 0)
    return _FOOTER.pack(*fields, cylinders, heads, sectors, 2, _checksum(made), id, 0)


def _checksum(footer: bytes | bytearray) -> int:
    """The checksum of a footer in which it is zero."""
    return ~sum(footer) & 0xFFFFFFFF


def geometry(total: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors for a disk of `total` sectors, by the algorithm in the specification."""
    total = min(total, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        return total // 255 // 16, 16, 255
    sectors = 17
    tracks = total // sectors
    heads = max(4, (tracks + 1023) // 1024)
    if tracks >= heads * 1024 or heads > 16:
        sectors, heads = 31, 16
        tracks = total // sectors
    if tracks >= heads * 1024:
        sectors, heads = 63, 16
        tracks = total // sectors
    return tracks // heads, heads, sectors
