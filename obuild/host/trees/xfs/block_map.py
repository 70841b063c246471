"""Which blocks a fork of an inode has, its data or its attributes: XFS Filesystem Structure, Data Extents."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

#: A run of blocks: its place in the fork, the number of its first block, and how many.
Run = tuple[int, int, int]

#: Reads a block of the file system.
Read = Callable[[int], bytes]

#: How a fork is kept: in the inode itself, as a list of extents there, or as a tree of them.
LOCAL, EXTENTS, TREE = 1, 2, 3

_RECORD = 16
_MAGICS = {b"BMAP": 24, b"BMA3": 72}
_DEEPEST = 9


class Fork(NamedTuple):
    """What an inode has of a fork: how it is kept, how many extents it has, and its bytes in the inode."""

    format: int
    extents: int
    data: bytes


def runs(fork: Fork, read: Read) -> Iterator[Run]:
    """The written runs, in order. ValueError if they make no sense."""
    end = 0
    for logical, first, count, written in _all(fork, read):
        if logical < end or not count:
            raise ValueError("extents that are not in order")
        end = logical + count
        if written:
            yield logical, first, count


def _all(fork: Fork, read: Read) -> Iterator[tuple[int, int, int, bool]]:
    if fork.format == EXTENTS:
        yield from _records(fork.data, 0, fork.extents)
    elif fork.format == TREE:
        level, count = struct.unpack_from(">HH", fork.data)
        if not 0 < level <= _DEEPEST:
            raise ValueError("a wrong tree of extents")
        for pointer in _pointers(fork.data, 4, count):
            yield from _below(pointer, level - 1, read)
    else:
        raise ValueError("a wrong kind of inode")


def _below(pointer: int, level: int, read: Read) -> Iterator[tuple[int, int, int, bool]]:
    block = read(pointer)
    header = _MAGICS.get(block[:4], 0)
    found, count = struct.unpack_from(">HH", block, 4)
    if not header or found != level:
        raise ValueError("a wrong tree of extents")
    if not level:
        yield from _records(block, header, count)
        return
    for below in _pointers(block, header, count):
        yield from _below(below, level - 1, read)


def _pointers(node: bytes, header: int, count: int) -> tuple[int, ...]:
    """The pointers of a node; they are behind the space for as many keys."""
    most = (len(node) - header) // 16
    if count > most:
        raise ValueError("a wrong tree of extents")
    return struct.unpack_from(f">{count}Q", node, header + most * 8)


def _records(data: bytes, at: int, count: int) -> Iterator[tuple[int, int, int, bool]]:
    """Extents: 1 bit for unwritten, 54 for the place in the fork, 52 for the first block, 21 for the length."""
    if at + count * _RECORD > len(data):
        raise ValueError("too many extents")
    for high, low in struct.iter_unpack(">QQ", data[at : at + count * _RECORD]):
        logical = high >> 9 & (1 << 54) - 1
        yield logical, (high & 0x1FF) << 43 | low >> 21, low & (1 << 21) - 1, not high >> 63
