"""Which blocks a file of ext2, ext3 or ext4 has: https://docs.kernel.org/filesystems/ext4/ifork.html"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

#: A run of blocks: its place in the file, its place in the file system, and how many.
Run = tuple[int, int, int]

#: Reads a block of the file system.
Read = Callable[[int], bytes]

_MAGIC, _DEEPEST = 0xF30A, 5

#: An extent longer than this is allocated and not written: it reads as zeros.
_WRITTEN = 32768


def extents(node: bytes, read: Read, depth: int = _DEEPEST) -> Iterator[Run]:
    """The written runs below a node of a tree of extents, in order. ValueError if it is no such tree."""
    magic, entries, _, level = struct.unpack_from("<4H", node)
    if magic != _MAGIC or level > depth:
        raise ValueError("a wrong tree of extents")
    for at in range(12, 12 + entries * 12, 12):
        if level:
            _, low, high = struct.unpack_from("<IIH", node, at)
            yield from extents(read((high << 32) | low), read, level - 1)
        else:
            logical, count, high, low = struct.unpack_from("<IHHI", node, at)
            if count <= _WRITTEN:
                yield logical, (high << 32) | low, count


def pointers(inode: bytes, read: Read, block_size: int) -> Iterator[Run]:
    """The blocks of a file whose inode has pointers, 12 to blocks and 3 to blocks of pointers, in order."""
    logical = 0
    for index, pointer in enumerate(struct.unpack("<15I", inode)):
        level = max(0, index - 11)
        yield from _below(pointer, level, logical, read)
        logical += (block_size // 4) ** level


def _below(pointer: int, level: int, logical: int, read: Read) -> Iterator[Run]:
    if not pointer:
        return
    if not level:
        yield logical, pointer, 1
        return
    block = read(pointer)
    per_block = len(block) // 4
    for index, below in enumerate(struct.unpack(f"<{per_block}I", block)):
        yield from _below(below, level - 1, logical + index * per_block ** (level - 1), read)
