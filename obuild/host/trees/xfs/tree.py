"""The trees of XFS: XFS Filesystem Structure, B+trees."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

#: Reads a block by its number.
Read = Callable[[int], bytes]

#: No tree has more levels.
DEEPEST = 9


class Shape(NamedTuple):
    """What a tree is `of`, the sizes of its blocks' headers by their magic, and formats of struct for the rest.

    Keys take 8 bytes.
    """

    of: str
    headers: dict[bytes, int]
    record: struct.Struct
    pointer: str


def records(read: Read, number: int, level: int, shape: Shape) -> Iterator[tuple[Any, ...]]:
    """The records below a block, which is so many levels above the leaves. ValueError if it is no such block."""
    block = read(number)
    header = shape.headers.get(block[:4], 0)
    found, count = struct.unpack_from(">HH", block, 4)
    if not header or found != level:
        raise ValueError(f"a wrong tree of {shape.of}")
    if level:
        for below in pointers(block, header, count, shape):
            yield from records(read, below, level - 1, shape)
        return
    end = header + count * shape.record.size
    if end > len(block):
        raise ValueError(f"a wrong tree of {shape.of}")
    yield from shape.record.iter_unpack(block[header:end])


def pointers(node: bytes, header: int, count: int, shape: Shape) -> tuple[int, ...]:
    """The pointers of a node; they are behind the space for as many keys."""
    most = (len(node) - header) // (8 + struct.calcsize(f">{shape.pointer}"))
    if count > most:
        raise ValueError(f"a wrong tree of {shape.of}")
    return struct.unpack_from(f">{count}{shape.pointer}", node, header + most * 8)
