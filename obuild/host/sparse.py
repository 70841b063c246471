"""The parts of a file that hold data; what is between them are holes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)


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


def sha256(path: Path, heard: Callable[[int], object] = lambda done: None) -> str:
    """The digest of a file, in hex. Holes are not read: the kernel would keep their zeros in memory.

    `heard` is called with the number of bytes that are hashed.
    """
    hasher, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        for piece in _pieces(file.fileno()):
            hasher.update(piece)
            done += len(piece)
            heard(done)
    return hasher.hexdigest()


def _pieces(descriptor: int) -> Iterator[bytes]:
    """The content of a file in pieces of up to 1 MiB."""
    done = 0
    for begin, stop in extents(descriptor):
        yield from zeros(begin - done)
        for at in range(begin, stop, _CHUNK):
            yield os.pread(descriptor, min(_CHUNK, stop - at), at)
        done = stop
    yield from zeros(os.fstat(descriptor).st_size - done)


def zeros(count: int) -> Iterator[bytes]:
    """This many zeros, in pieces of up to 1 MiB."""
    for left in range(count, 0, -_CHUNK):
        yield _ZEROS[: min(left, _CHUNK)]
