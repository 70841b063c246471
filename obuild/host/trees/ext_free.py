"""The free blocks of ext2, ext3 and ext4: https://docs.kernel.org/filesystems/ext4/globals.html

dumpe2fs says the same, but it looks at every bit of every table, and takes as long as unpacking a small disk.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from obuild.errors import ObuildError
from obuild.host.blocks import Blocks
from obuild.host.trees.ext import RECOVER, SUPERBLOCK, WIDE

_SPARSE2, _META_GROUPS = 0x200, 0x10
_SPARSE, _CHECKSUMS, _CLUSTERS = 0x1, 0x10 | 0x400, 0x200

#: The flag of a group whose bitmap has not been written, because only the file system's own tables are in it.
_UNWRITTEN = 0x2

#: Of a group, in blocks.
_SMALLEST = 256


class _Group(NamedTuple):
    """A descriptor: where the tables of a group are, as numbers of blocks, and how many free blocks it has."""

    bitmap: int
    inode_bitmap: int
    inode_table: int
    free: int
    unwritten: bool


class _FileSystem:
    """What the superblock says, and the descriptors of all groups."""

    def __init__(self, disk: Blocks, start: int) -> None:
        head = disk.read(start + SUPERBLOCK, 1024)
        (low,) = struct.unpack_from("<I", head, 4)
        self.first, log_block = struct.unpack_from("<II", head, 20)
        self.per_group, _, inodes_per_group = struct.unpack_from("<III", head, 32)
        revision, _, _, inode_size = struct.unpack_from("<IIIH", head, 76)
        compatible, incompatible, self.features = struct.unpack_from("<III", head, 92)
        self.reserved = struct.unpack_from("<H", head, 206)[0]
        (size,) = struct.unpack_from("<H", head, 254)
        (high,) = struct.unpack_from("<I", head, 336)
        self.backups: tuple[int, ...] | None = (
            struct.unpack_from("<II", head, 588) if compatible & _SPARSE2 else None
        )
        wide = bool(incompatible & WIDE)
        self.count = low | high << 32 if wide else low
        if incompatible & RECOVER:
            raise ObuildError("its file system was not unmounted")
        if incompatible & _META_GROUPS or self.features & _CLUSTERS:
            raise ObuildError(
                f"its file system has the feature {'meta_bg' if incompatible & _META_GROUPS else 'bigalloc'}"
            )
        self.block = 1024 << min(log_block, 7)
        descriptor = size if wide else 32
        self.inode_blocks = -(-inodes_per_group * (inode_size if revision else 128) // self.block)
        sound = (
            log_block <= 6,
            descriptor in (32, 64),
            self.first < self.count <= disk.size // self.block,
            _SMALLEST <= self.per_group <= self.block * 8,
            self.inode_blocks <= self.per_group,
        )
        if not all(sound):
            raise _damaged("its superblock has wrong sizes")
        groups = -(-(self.count - self.first) // self.per_group)
        table = disk.read(start + (self.first + 1) * self.block, groups * descriptor)
        self.table_blocks = -(-len(table) // self.block)
        self.groups = [self._group(table[at : at + descriptor]) for at in range(0, len(table), descriptor)]

    def _group(self, described: bytes) -> _Group:
        bitmap, inode_bitmap, inode_table, free, _, _, flags = struct.unpack_from("<IIIHHHH", described)
        unwritten = bool(self.features & _CHECKSUMS and flags & _UNWRITTEN)
        high = struct.unpack_from("<IIIH", described, 32) if len(described) == 64 else (0, 0, 0, 0)
        return _Group(
            bitmap | high[0] << 32,
            inode_bitmap | high[1] << 32,
            inode_table | high[2] << 32,
            free | high[3] << 16,
            unwritten,
        )

    def has_superblock(self, group: int) -> bool:
        if self.backups is not None:
            return group == 0 or group in self.backups
        return group < 2 or not self.features & _SPARSE or any(_power(group, of) for of in (3, 5, 7))

    def own(self) -> dict[int, list[tuple[int, int]]]:
        """Which blocks of each group are the file system's: number of the first in the group, and how many."""
        found = defaultdict(list)
        for number, group in enumerate(self.groups):
            if self.has_superblock(number):
                found[number].append((0, 1 + self.table_blocks + self.reserved))
            lengths = (1, 1, self.inode_blocks)
            for at, length in zip(group[:3], lengths, strict=True):
                while length:  # a table may go on in the next group
                    within, place = divmod(at - self.first, self.per_group)
                    count = min(length, self.per_group - place)
                    found[within].append((place, count))
                    at, length = at + count, length - count
        return found


def free(disk: Blocks, start: int) -> Iterator[tuple[int, int]]:
    """The free runs of the file system that begins at `start`, as offset on the disk and length in bytes.

    ObuildError, with a reason, if its features are not known, it was not unmounted, or it is damaged.
    """
    system = _FileSystem(disk, start)
    own = system.own()
    for number, group in enumerate(system.groups):
        at = system.first + number * system.per_group
        length = min(system.per_group, system.count - at)
        if group.unwritten:
            bits = bytearray(b"0" * length)
            for place, count in own[number]:
                bits[place : place + count] = b"1" * len(bits[place : place + count])
            used = bits.decode()
        else:
            bitmap = disk.read(start + group.bitmap * system.block, -(-length // 8))
            used = f"{int.from_bytes(bitmap, 'little'):0{length}b}"[::-1][:length]
        if used.count("0") != group.free:
            raise _damaged(f"group {number} has another number of free blocks than it says")
        for run in re.finditer("0+", used):
            yield start + (at + run.start()) * system.block, len(run[0]) * system.block


def _damaged(why: str) -> ObuildError:
    return ObuildError(f"its file system is damaged: {why}", hint="e2fsck can mend it")


def _power(number: int, base: int) -> bool:
    while number > 1 and number % base == 0:
        number //= base
    return number == 1
