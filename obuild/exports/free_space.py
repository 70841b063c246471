"""Clear the free space of the file systems on a disk: what was deleted there must not travel with the image.

A guest's rm and fstrim are not enough: blocks that are smaller than a cluster of its overlay keep what they held.
Names of deleted files may stay in folders and in the journal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from obuild.errors import ObuildError
from obuild.host import sparse
from obuild.host.blocks import Blocks, raw_file
from obuild.host.partitions import kind, partitions
from obuild.host.trees import fat
from obuild.host.trees.btrfs import free as btrfs
from obuild.host.trees.ext import free as ext
from obuild.host.trees.xfs import free as xfs

#: For each file system: what lists its free runs.
_KNOWN: dict[str, Callable[[Blocks, int], Iterable[tuple[int, int]]]] = {
    "ext": ext.free,
    "xfs": xfs.free,
    "btrfs": btrfs.free,
    "vfat": fat.free,
}

_CHUNK = 1 << 20


class Cleared(NamedTuple):
    """`size` bytes of free space were cleared; for each number of a partition that was not, `skipped` says why."""

    size: int
    skipped: dict[int, str]


def clear(disk: Path) -> Cleared:
    """Write zeros over all free blocks of the raw disk that are not holes."""
    size, skipped = 0, {}
    with raw_file(disk) as blocks, disk.open("r+b") as file:
        for number, start, *_ in partitions(blocks):
            known = _KNOWN.get(kind(blocks, start))
            if known is None:
                skipped[number] = "its file system is not ext2, ext3, ext4, xfs, btrfs or FAT"
                continue
            try:
                free = list(known(blocks, start))
            except ObuildError as error:
                skipped[number] = error.message
                continue
            size += sum(_zero(file, at, length) for at, length in free)
    return Cleared(size, skipped)


def _zero(file: BinaryIO, at: int, length: int) -> int:
    """Write zeros over a part of the disk where it holds anything; returns how many bytes."""
    end, done = at + length, 0
    for begin, stop in sparse.extents(file.fileno(), at):
        if begin >= end:
            break
        for place in range(begin, min(stop, end), _CHUNK):
            piece = min(_CHUNK, stop - place, end - place)
            if os.pread(file.fileno(), piece, place).strip(b"\0"):
                os.pwrite(file.fileno(), bytes(piece), place)
                done += piece
    return done
