"""The superblock of ext2, ext3 and ext4: https://docs.kernel.org/filesystems/ext4/super.html"""

from __future__ import annotations

import struct
from typing import NamedTuple

from obuild.host.blocks import Blocks
from obuild.host.trees.damage import damaged

#: Where it is.
OFFSET = 1024

_HAS_JOURNAL, _SPARSE2 = 0x4, 0x200
_RECOVER, _WIDE = 0x4, 0x80

#: The states of a file system.
_UNMOUNTED, _DAMAGED = 1, 2


class Superblock(NamedTuple):
    """What a file system says of itself. Sizes are in bytes, and counts in blocks unless they are of inodes.

    `first` is the block that group 0 begins with. `reserved` blocks after the table of groups are for more groups.
    `backups` has the two groups with a copy of the superblock, or is None where that follows from the features.
    """

    inodes: int
    blocks: int
    first: int
    block: int
    per_group: int
    inodes_per_group: int
    inode_size: int
    descriptor: int
    state: int
    compatible: int
    incompatible: int
    read_only: int
    reserved: int
    backups: tuple[int, int] | None

    @property
    def unfinished(self) -> bool:
        """Whether the journal has changes that are not in the files."""
        return bool(self.incompatible & _RECOVER)

    @property
    def damaged(self) -> bool:
        """Whether the kernel has found the file system damaged."""
        return bool(self.state & _DAMAGED)

    @property
    def unsure(self) -> bool:
        """Whether it was not unmounted and has no journal, so that it may be damaged."""
        return not self.state & _UNMOUNTED and not self.compatible & _HAS_JOURNAL


def read(disk: Blocks, start: int) -> Superblock:
    """The superblock of the file system that begins at `start` on the disk. ObuildError if it makes no sense."""
    head = disk.read(start + OFFSET, 1024)
    inodes, blocks = struct.unpack_from("<II", head)
    first, log_block = struct.unpack_from("<II", head, 20)
    per_group, _, inodes_per_group = struct.unpack_from("<III", head, 32)
    (state,) = struct.unpack_from("<H", head, 58)
    revision, _, _, inode_size = struct.unpack_from("<IIIH", head, 76)
    compatible, incompatible, read_only = struct.unpack_from("<III", head, 92)
    (reserved,) = struct.unpack_from("<H", head, 206)
    (descriptor,) = struct.unpack_from("<H", head, 254)
    (blocks_high,) = struct.unpack_from("<I", head, 336)
    if log_block > 6 or not inodes_per_group:
        raise damaged("its superblock has wrong sizes", "e2fsck")
    wide = bool(incompatible & _WIDE)
    return Superblock(
        inodes,
        blocks | blocks_high << 32 if wide else blocks,
        first,
        1024 << log_block,
        per_group,
        inodes_per_group,
        inode_size if revision else 128,
        descriptor if wide else 32,
        state,
        compatible,
        incompatible,
        read_only,
        reserved,
        struct.unpack_from("<II", head, 588) if compatible & _SPARSE2 else None,
    )
