"""The parts of a file that hold data; what is between them are holes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
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


def sha256(path: Path) -> str:
    """The digest of a file, in hex. Holes are not read: the kernel would keep their zeros in memory."""
    hasher, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        for begin, stop in extents(file.fileno()):
            _add_zeros(hasher, begin - done)
            for at in range(begin, stop, _CHUNK):
                hasher.update(os.pread(file.fileno(), min(_CHUNK, stop - at), at))
            done = stop
        _add_zeros(hasher, os.fstat(file.fileno()).st_size - done)
    return hasher.hexdigest()


def _add_zeros(hasher: hashlib._Hash, count: int) -> None:
    while count > 0:
        hasher.update(_ZEROS[: min(count, _CHUNK)])
        count -= _CHUNK
