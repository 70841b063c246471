"""Which blocks a fork of an inode has, its data or its attributes: XFS Filesystem Structure, Data Extents."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from obuild.host.trees.xfs import tree
from obuild.host.trees.xfs.tree import Read, Shape

#: A run of blocks: its place in the fork, the number of its first block, and how many.
Run = tuple[int, int, int]

#: How a fork is kept: in the inode itself, as a list of extents there, or as a tree of them.
LOCAL, EXTENTS, TREE = 1, 2, 3

#: 1 bit for unwritten, 54 for the place in the fork, 52 for the first block, 21 for the length.
_EXTENT = struct.Struct(">QQ")
_SHAPE = Shape("extents", {b"BMAP": 24, b"BMA3": 72}, _EXTENT, "Q")


class Fork(NamedTuple):
    """What an inode has of a fork: how it is kept, how many extents it has, and its bytes in the inode."""

    format: int
    extents: int
    data: bytes


def runs(fork: Fork, read: Read) -> Iterator[Run]:
    """The written runs, in order. ValueError if they make no sense."""
    end = 0
    for high, low in _all(fork, read):
        logical, first, count = high >> 9 & (1 << 54) - 1, (high & 0x1FF) << 43 | low >> 21, low & (1 << 21) - 1
        if logical < end or not count:
            raise ValueError("extents that are not in order")
        end = logical + count
        if not high >> 63:
            yield logical, first, count


def _all(fork: Fork, read: Read) -> Iterator[tuple[int, int]]:
    """The records, as two numbers each."""
    if fork.format == EXTENTS:
        end = fork.extents * _EXTENT.size
        if end > len(fork.data):
            raise ValueError("too many extents")
        yield from _EXTENT.iter_unpack(fork.data[:end])
    elif fork.format == TREE:
        level, count = struct.unpack_from(">HH", fork.data)
        if not 0 < level <= tree.DEEPEST:
            raise ValueError("a wrong tree of extents")
        for pointer in tree.pointers(fork.data, 4, count, _SHAPE):
            yield from tree.records(read, pointer, level - 1, _SHAPE)
    else:
        raise ValueError("a wrong kind of inode")
