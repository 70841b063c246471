"""The free blocks of ext2, ext3 and ext4: https://docs.kernel.org/filesystems/ext4/globals.html

dumpe2fs says the same, but it looks at every bit of every table, and takes as long as unpacking a small disk.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from obuild.errors import UsageError
from obuild.host.blocks import Blocks
from obuild.host.trees.damage import Unfinished, damaged
from obuild.host.trees.ext import superblock

_META_GROUPS = 0x10
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
        self.head = head = superblock.read(disk, start)
        if head.unfinished:
            raise Unfinished()
        if head.incompatible & _META_GROUPS or head.read_only & _CLUSTERS:
            named = "meta_bg" if head.incompatible & _META_GROUPS else "bigalloc"
            raise UsageError(f"the file system has the feature {named}")
        self.inode_blocks = -(-head.inodes_per_group * head.inode_size // head.block)
        sound = (
            head.descriptor in (32, 64),
            head.first < head.blocks <= disk.size // head.block,
            _SMALLEST <= head.per_group <= head.block * 8,
            self.inode_blocks <= head.per_group,
        )
        if not all(sound):
            raise damaged("its superblock has wrong sizes", "e2fsck")
        groups = -(-(head.blocks - head.first) // head.per_group)
        table = disk.read(start + (head.first + 1) * head.block, groups * head.descriptor)
        self.table_blocks = -(-len(table) // head.block)
        self.groups = [
            self._group(table[at : at + head.descriptor]) for at in range(0, len(table), head.descriptor)
        ]

    def _group(self, described: bytes) -> _Group:
        bitmap, inode_bitmap, inode_table, free, _, _, flags = struct.unpack_from("<IIIHHHH", described)
        unwritten = bool(self.head.read_only & _CHECKSUMS and flags & _UNWRITTEN)
        high = struct.unpack_from("<IIIH", described, 32) if len(described) == 64 else (0, 0, 0, 0)
        return _Group(
            bitmap | high[0] << 32,
            inode_bitmap | high[1] << 32,
            inode_table | high[2] << 32,
            free | high[3] << 16,
            unwritten,
        )

    def has_superblock(self, group: int) -> bool:
        if self.head.backups is not None:
            return group == 0 or group in self.head.backups
        return group < 2 or not self.head.read_only & _SPARSE or any(_power(group, of) for of in (3, 5, 7))

    def own(self) -> dict[int, list[tuple[int, int]]]:
        """Which blocks of each group are the file system's: number of the first in the group, and how many."""
        found = defaultdict(list)
        for number, group in enumerate(self.groups):
            if self.has_superblock(number):
                found[number].append((0, 1 + self.table_blocks + self.head.reserved))
            lengths = (1, 1, self.inode_blocks)
            for at, length in zip(group[:3], lengths, strict=True):
                while length:  # a table may go on in the next group
                    within, place = divmod(at - self.head.first, self.head.per_group)
                    count = min(length, self.head.per_group - place)
                    found[within].append((place, count))
                    at, length = at + count, length - count
        return found


def free(disk: Blocks, start: int) -> Iterator[tuple[int, int]]:
    """The free runs of the file system that begins at `start`, as offset on the disk and length in bytes.

    ObuildError, with a reason, if its features are not known, it was not unmounted, or it is damaged.
    """
    system = _FileSystem(disk, start)
    head, own = system.head, system.own()
    for number, group in enumerate(system.groups):
        at = head.first + number * head.per_group
        length = min(head.per_group, head.blocks - at)
        if group.unwritten:
            bits = bytearray(b"0" * length)
            for place, count in own[number]:
                bits[place : place + count] = b"1" * len(bits[place : place + count])
            used = bits.decode()
        else:
            bitmap = disk.read(start + group.bitmap * head.block, -(-length // 8))
            used = f"{int.from_bytes(bitmap, 'little'):0{length}b}"[::-1][:length]
        if used.count("0") != group.free:
            raise damaged(f"group {number} has another number of free blocks than it says", "e2fsck")
        for run in re.finditer("0+", used):
            yield start + (at + run.start()) * head.block, len(run[0]) * head.block


def _power(number: int, base: int) -> bool:
    while number > 1 and number % base == 0:
        number //= base
    return number == 1
