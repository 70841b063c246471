"""Damage to a disk, at random but the same each time: whoever reads it must end with a result or one error."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from obuild.errors import ObuildError
from obuild.host.blocks import Blocks, beyond
from obuild.host.trees import root
from obuild.host.trees.nodes import Tree, content


class Damaged:
    """A disk in memory with some bytes replaced, which notes what is read."""

    path: Path | None = None

    def __init__(self, data: bytes, changes: dict[int, int] | None = None) -> None:
        self.size, self._data, self._changes = len(data), data, changes or {}
        self.parts: set[tuple[int, int]] = set()

    def read(self, offset: int, length: int) -> bytes:
        if not 0 <= offset <= offset + length <= self.size:
            raise beyond(offset)
        self.parts.add((offset, length))
        found = bytearray(self._data[offset : offset + length])
        for place, value in self._changes.items():
            if offset <= place < offset + length:
                found[place - offset] = value
        return bytes(found)


def read_all(tree: Tree, *, contents: bool = True) -> None:
    """Read all that a tree has, except what is in large files."""
    for node in tree.walk():
        node.source.xattrs(node)
        if node.is_file and contents and node.size < 8 << 20:
            content(node)
        elif node.is_file:
            list(node.source.extents(node))
        elif node.is_link:
            node.source.target(node)


def every_end(data: bytes, rounds: int) -> Counter[str]:
    """How often a disk with damaged tables was read, and how often it was refused. Any other error is raised."""
    return _ends(data, rounds, lambda disk, whole: read_all(root.of_disk(disk), contents=not whole))


def every_end_of(free: Callable[[Blocks, int], object], data: bytes, rounds: int) -> Counter[str]:
    """The same for what lists the free runs of a file system."""
    return _ends(data, rounds, lambda disk, whole: free(disk, 0))


def _ends(data: bytes, rounds: int, read: Callable[[Blocks, bool], object]) -> Counter[str]:
    whole, chance, ends = Damaged(data), random.Random(1), Counter[str]()
    read(whole, True)
    tables = sorted(place for at, length in whole.parts for place in range(at, at + length) if data[place])
    for _ in range(rounds):
        first = chance.choice(tables)
        values = [0, 255, data[first] ^ 1 << chance.randrange(8), chance.randrange(256)]
        changes = {first + chance.randrange(8): chance.choice(values) for _ in range(chance.choice([1, 1, 3]))}
        try:
            read(Damaged(data, changes), False)
        except ObuildError:
            ends["refused"] += 1
        else:
            ends["read"] += 1
    return ends
