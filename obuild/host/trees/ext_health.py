"""Whether an ext2, ext3 or ext4 file system is complete: https://docs.kernel.org/filesystems/ext4/super.html"""

from __future__ import annotations

import struct
from typing import NamedTuple

from obuild.host.blocks import Blocks
from obuild.host.trees.ext import RECOVER, SUPERBLOCK

_HAS_JOURNAL = 0x4

#: The states of a file system.
_UNMOUNTED, _DAMAGED = 1, 2


class Health(NamedTuple):
    """What a file system says of itself.

    The journal has changes that are not in its files; the kernel has found it damaged; or it was not unmounted and
    has no journal, so that it may be damaged.
    """

    unfinished: bool
    damaged: bool
    unsure: bool


def health(disk: Blocks, start: int) -> Health:
    """The health of the file system that begins at `start` on the disk."""
    head = disk.read(start + SUPERBLOCK, 100)
    (state,) = struct.unpack_from("<H", head, 58)
    compatible, incompatible = struct.unpack_from("<II", head, 92)
    return Health(
        unfinished=bool(incompatible & RECOVER),
        damaged=bool(state & _DAMAGED),
        unsure=not state & _UNMOUNTED and not compatible & _HAS_JOURNAL,
    )
