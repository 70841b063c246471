"""The partitions of a disk, and what kind of content each has, from its signatures."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple
from uuid import UUID

from obuild.host.blocks import Blocks

SECTOR = 512

#: The types of MBR partitions that hold others, and that of the one which covers a GPT.
_EXTENDED, _PROTECTIVE = (0x05, 0x0F, 0x85), 0xEE

#: The EFI system partition, in a GPT.
ESP_TYPE = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"

#: The root file system of each architecture: Discoverable Partitions Specification.
ROOT_TYPES = {
    "x86_64": "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    "aarch64": "b921b045-1df0-41c3-af44-4c6f280d3fae",
    "riscv64": "72ec70a6-cf74-40e6-bd49-4bda08e8f224",
    "s390x": "5eead9a9-fe09-4a1e-a1d7-520d00531306",
    "ppc64le": "c31c45e6-3f39-412e-80fb-4809c4980599",
}

#: A member of a RAID, whose own mark may be at its end: in an MBR and in a GPT.
_RAID = ("fd", "a19d880f-05fc-4d3b-a006-743f0f84911e")

#: More than any disk has, in case a table is wrong.
_MOST = 1024


class Partition(NamedTuple):
    """A partition: `number` from 1, `start` and `size` in bytes.

    `type` is the GUID of a GPT entry in lower case, or two hex digits in an MBR. `uuid` is what Linux calls
    PARTUUID, and `name` PARTLABEL. A disk without a table is one with the number 0.
    """

    number: int
    start: int
    size: int
    type: str = ""
    uuid: str = ""
    name: str = ""

    @property
    def called(self) -> str:
        """The partition in a message."""
        return f"partition {self.number}" if self.number else "the disk"


def partitions(disk: Blocks) -> list[Partition]:
    """The partitions of a disk in the order of their numbers; the whole disk if it has no table."""
    if disk.size < 2 * SECTOR:
        return [Partition(0, 0, disk.size)]
    sector = disk.read(0, SECTOR)
    # The boot sector of a FAT or NTFS file system ends like an MBR.
    if sector[510:] != b"\x55\xaa" or kind(disk, 0) in ("vfat", "ntfs"):
        return [Partition(0, 0, disk.size)]
    entries = list(_entries(sector))
    if any(type == _PROTECTIVE for type, _, _ in entries):
        return list(_gpt(disk))
    signature = f"{struct.unpack_from('<I', sector, 440)[0]:08x}"
    found: list[Partition] = []
    for number, (type, start, count) in enumerate(entries, 1):
        if type in _EXTENDED:
            found += _logical(disk, start, signature)
        elif type:
            found.append(_in_mbr(number, type, start, count, signature))
    return sorted(found)


def _entries(sector: bytes) -> Iterator[tuple[int, int, int]]:
    """The type, the first sector and the number of sectors of each entry in a table."""
    for at in range(446, 510, 16):
        yield struct.unpack_from("<4xB3xII", sector, at)


def _in_mbr(number: int, type: int, start: int, count: int, signature: str) -> Partition:
    return Partition(number, start * SECTOR, count * SECTOR, f"{type:02x}", f"{signature}-{number:02x}")


def _logical(disk: Blocks, first: int, signature: str) -> Iterator[Partition]:
    """The partitions within an extended one: a chain of tables, whose second entry leads to the next."""
    table = first
    for number in range(5, _MOST):
        if (table + 1) * SECTOR > disk.size:
            return
        inner, following, *_ = _entries(disk.read(table * SECTOR, SECTOR))
        if inner[0]:
            yield _in_mbr(number, inner[0], table + inner[1], inner[2], signature)
        if following[0] not in _EXTENDED:
            return
        table = first + following[1]


def _gpt(disk: Blocks) -> Iterator[Partition]:
    """The partitions of a GPT: UEFI specification 2.10, 5.3. None if its header is damaged."""
    header = disk.read(SECTOR, SECTOR)
    (length,) = struct.unpack_from("<I", header, 12)
    (checksum,) = struct.unpack_from("<I", header, 16)
    if header[:8] != b"EFI PART" or not 92 <= length <= SECTOR:
        return
    if zlib.crc32(header[:16] + bytes(4) + header[20:length]) != checksum:
        return
    table, count, size = struct.unpack_from("<QII", header, 72)
    if size < 128 or count > _MOST or table * SECTOR + count * size > disk.size:
        return
    entries = disk.read(table * SECTOR, count * size)
    for number in range(1, count + 1):
        entry = entries[(number - 1) * size : number * size]
        type, own = (str(UUID(bytes_le=entry[at : at + 16])) for at in (0, 16))
        first, last = struct.unpack_from("<QQ", entry, 32)
        if any(entry[:16]) and first <= last:
            name = entry[56:128].decode("utf-16-le", "replace").partition("\0")[0]
            yield Partition(number, first * SECTOR, (last - first + 1) * SECTOR, type, own, name)


class Signature(NamedTuple):
    """What blkid(8) calls the content, and the bytes that it has at an offset."""

    kind: str
    offset: int
    magic: bytes


#: From the formats' documents, and from libblkid; what is first wins.
SIGNATURES = (
    Signature("LUKS", 0, b"LUKS\xba\xbe"),
    Signature("LVM", 512, b"LABELONE"),
    Signature("BitLocker", 3, b"-FVE-FS-"),
    Signature("ntfs", 3, b"NTFS    "),
    Signature("xfs", 0, b"XFSB"),
    Signature("btrfs", 0x10040, b"_BHRfS_M"),
    Signature("ext", 1024 + 56, b"\x53\xef"),
    Signature("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    Signature("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
    Signature("squashfs", 0, b"hsqs"),
    Signature("swap", 4086, b"SWAPSPACE2"),
    Signature("vfat", 82, b"FAT32   "),
    Signature("vfat", 54, b"FAT16   "),
    Signature("vfat", 54, b"FAT12   "),
    Signature("ufs", 65536 + 1372, b"\x19\x01\x54\x19"),
    Signature("ufs", 8192 + 1372, b"\x19\x01\x54\x19"),
    Signature("ufs", 8192 + 1372, b"\x54\x19\x01\x00"),
    Signature("linux_raid_member", 4096, b"\xfc\x4e\x2b\xa9"),
)


#: The file systems that only Linux itself can read and resize here, and the options to mount a copy of one: the
#: original, with the same UUID, may be mounted as well.
MOUNT_OPTIONS: dict[str, tuple[str, ...]] = {"xfs": ("nouuid",), "btrfs": ()}


def kind_of(disk: Blocks, part: Partition) -> str:
    """What a partition has, by the names of `SIGNATURES`; "" if nothing known."""
    return "linux_raid_member" if part.type in _RAID else kind(disk, part.start)


def kind(disk: Blocks, start: int) -> str:
    """What begins at `start` bytes on the disk, by the names of `SIGNATURES`; "" if nothing known."""
    for signature in SIGNATURES:
        at = start + signature.offset
        if at + len(signature.magic) <= disk.size and disk.read(at, len(signature.magic)) == signature.magic:
            return signature.kind
    return ""
