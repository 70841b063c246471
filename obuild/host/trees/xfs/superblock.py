"""The superblock of XFS: XFS Filesystem Structure, xfs_filesystem_structure.pdf of the kernel's documentation."""

from __future__ import annotations

import struct
from typing import NamedTuple

from obuild.errors import UsageError
from obuild.host.blocks import Blocks
from obuild.host.trees.damage import damaged, unreadable

#: Features that are known, or do not change how files are read: ftype, sparse inodes, a UUID for metadata alone,
#: times after 2038, many extents, exchanged ranges, parent pointers, and a folder of metadata.
_KNOWN = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80 | 0x100
_NEEDS_REPAIR, _ZONED = 0x10, 0x200

#: In a file system of version 4: folders know the types of files.
_FTYPE, _FTYPE_4 = 0x1, 0x200


class Superblock(NamedTuple):
    """What a file system says of itself; sizes are in bytes, `log` and `group` and the counts in blocks.

    Block and inode numbers have that of their allocation group in front, shifted by `group_bits` and more.
    """

    start: int
    block: int
    blocks: int
    root: int
    group: int
    groups: int
    group_bits: int
    sector: int
    inode: int
    inode_bits: int
    folder_block: int
    log: int
    log_count: int
    checksums: bool
    types: bool

    def place(self, block: int) -> int:
        """Where a block is on the disk, by its number. ValueError if there is none."""
        group, within = block >> self.group_bits, block & (1 << self.group_bits) - 1
        number = group * self.group + within
        if within >= self.group or number >= self.blocks:
            raise ValueError(f"there is no block {block}")
        return self.start + number * self.block


def read(disk: Blocks, start: int) -> Superblock:
    """The superblock of the file system that begins at `start` on the disk.

    UsageError if it has a feature that changes how files are read, ObuildError if it makes no sense.
    """
    head = disk.read(start, 512)
    block, count = struct.unpack_from(">IQ", head, 4)
    log, root = struct.unpack_from(">QQ", head, 48)
    group, groups, _, log_count = struct.unpack_from(">IIII", head, 84)
    version, sector, inode = struct.unpack_from(">HHH", head, 100)
    block_bits, _, _, inode_bits, group_bits = struct.unpack_from(">5B", head, 120)
    folder_bits = head[192]
    older, newer = struct.unpack_from(">I", head, 200)[0], struct.unpack_from(">I", head, 216)[0]
    checksums = version & 15 == 5
    sound = (
        version & 15 in (4, 5),
        9 <= block_bits <= 16 and block == 1 << block_bits,
        sector in (512, 1024, 2048, 4096, 8192, 16384, 32768),
        256 <= inode <= 2048 and inode << inode_bits == block,
        0 < group <= 1 << group_bits <= 1 << 32,
        0 < count <= group * groups and groups <= 1 << 32,
        folder_bits + block_bits <= 16,
    )
    if not all(sound):
        raise damaged("its superblock has wrong sizes", "xfs_repair")
    _check(newer if checksums else 0, external=not log)
    return Superblock(
        start,
        block,
        count,
        root,
        group,
        groups,
        group_bits,
        sector,
        inode,
        inode_bits,
        block << folder_bits,
        log,
        log_count,
        checksums,
        bool(newer & _FTYPE if checksums else older & _FTYPE_4),
    )


def _check(features: int, *, external: bool) -> None:
    if features & _NEEDS_REPAIR:
        raise UsageError("the xfs file system wants to be repaired", hint="xfs_repair can mend it")
    if external or features & ~_KNOWN:
        name = "external log" if external else "zoned" if features & _ZONED else f"{features & ~_KNOWN:#x}"
        raise unreadable("xfs", name)
