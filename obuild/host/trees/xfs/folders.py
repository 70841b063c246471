"""The names in a folder of XFS: XFS Filesystem Structure, Directories."""

from __future__ import annotations

import struct
from collections.abc import Iterator

#: The headers of blocks with names; a block that is the only one has an index at its end.
_HEADERS = {b"XD2D": 16, b"XD2B": 16, b"XDD3": 64, b"XDB3": 64}
_ALONE = (b"XD2B", b"XDB3")

_FREE = 0xFFFF


def in_inode(data: bytes, *, types: bool) -> Iterator[tuple[bytes, int]]:
    """Names and inodes of a small folder, which is in its own inode."""
    count, wide = data[0], data[1]
    size, form = (8, ">Q") if wide else (4, ">I")
    at = 2 + size
    for _ in range(count):
        end = at + 3 + data[at] + types
        yield data[at + 3 : at + 3 + data[at]], struct.unpack_from(form, data, end)[0]
        at = end + size


def in_block(block: bytes, *, types: bool) -> Iterator[tuple[bytes, int]]:
    """Names and inodes in a block of a folder, with those of the folder itself and of its parent."""
    at, end = _HEADERS.get(block[:4], 0), len(block)
    if not at:
        raise ValueError("a wrong block of a folder")
    if block[:4] in _ALONE:
        (indexed,) = struct.unpack_from(">I", block, end - 8)
        end -= 8 + 8 * indexed
    while at < end:
        tag, length = struct.unpack_from(">HH", block, at)
        if tag == _FREE:
            if length < 8:
                raise ValueError("a wrong block of a folder")
            at += length
            continue
        (inode,) = struct.unpack_from(">Q", block, at)
        size = block[at + 8]
        yield block[at + 9 : at + 9 + size], inode
        at += -(-(9 + size + types + 2) // 8) * 8
