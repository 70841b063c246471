"""The parts of a file that hold data; what is between them are holes."""

from __future__ import annotations

import os
from collections.abc import Iterator


def extents(descriptor: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Where data begins and ends, in bytes and in order, from `start` on."""
    end = start
    while True:
        try:
            found = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        end = os.lseek(descriptor, found, os.SEEK_HOLE)
        yield found, end


def blocks(descriptor: int, size: int) -> Iterator[int]:
    """Where the blocks of `size` bytes begin in which a file holds anything, in order."""
    after = 0
    for found, stop in extents(descriptor):
        yield from range(max(found // size * size, after), stop, size)
        after = -(-stop // size) * size
