"""The free blocks of XFS: XFS Filesystem Structure, AG Free Space Management."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from obuild.host.blocks import Blocks
from obuild.host.trees.damage import Unfinished, guarded, once
from obuild.host.trees.xfs import log, superblock, tree
from obuild.host.trees.xfs.superblock import Superblock
from obuild.host.trees.xfs.tree import Shape

_SHAPE = Shape("free blocks", {b"ABTB": 16, b"AB3B": 56}, struct.Struct(">II"), "I")

#: Before the list of blocks that are kept for the trees.
_LIST_HEADER = 36

#: A run of free blocks of a group: the first, and how many.
Run = tuple[int, int]


@guarded("xfs_repair")
def free(disk: Blocks, start: int) -> list[tuple[int, int]]:
    """The free runs of the file system that begins at `start`, as offset on the disk and length in bytes.

    UsageError if it has unknown features or was not unmounted, ObuildError if it is damaged.
    """
    head = superblock.read(disk, start)
    if not log.clean(disk, head):
        raise Unfinished()
    found = []
    for group in range(head.groups):
        first = group * head.group
        for at, count in _runs(disk, head, first):
            found.append((start + (first + at) * head.block, count * head.block))
    return found


def _runs(disk: Blocks, head: Superblock, first: int) -> Iterator[Run]:
    """The free runs of the group that begins with this block, in order, and then what is kept for its trees."""
    place = head.start + first * head.block

    def read(block: int) -> bytes:
        return disk.read(place + block * head.block, head.block)

    described = disk.read(place + head.sector, head.sector)
    magic, _, _, size, root = struct.unpack_from(">4s4I", described)
    (level,) = struct.unpack_from(">I", described, 28)
    at, _, kept, total = struct.unpack_from(">4I", described, 40)
    if magic != b"XAGF" or not 0 < size <= head.group or not 0 < level <= tree.DEEPEST:
        raise ValueError("a wrong group of blocks")
    end = 0
    for begin, count in tree.records(once(read), root, level - 1, _SHAPE):
        if begin < end or begin + count > size or not count:
            raise ValueError("free blocks that are not in order")
        end, total = begin + count, total - count
        yield begin, count
    if total:
        raise ValueError("a group has another number of free blocks than it says")
    blocks = _listed(disk.read(place + 3 * head.sector, head.sector), head)
    for index in range(kept):
        block = blocks[(at + index) % len(blocks)]
        if not block < size:
            raise ValueError("a wrong list of free blocks")
        yield block, 1


def _listed(sector: bytes, head: Superblock) -> tuple[int, ...]:
    skipped = _LIST_HEADER if head.checksums else 0
    return struct.unpack_from(f">{(len(sector) - skipped) // 4}I", sector, skipped)
