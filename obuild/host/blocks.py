"""The bytes of a disk at any place, wherever they are kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from obuild.errors import ObuildError


class Blocks(Protocol):
    """A disk of `size` bytes that is only read. `path` is that of its raw file, if it has one."""

    size: int
    path: Path | None

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. ObuildError if the disk ends before."""
        ...


class Bytes:
    """A disk, or its beginning, in memory."""

    path: Path | None = None

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read(self, offset: int, length: int) -> bytes:
        """See `Blocks.read`."""
        if not 0 <= offset <= offset + length <= self.size:
            raise beyond(offset)
        return self._data[offset : offset + length]


class RawFile:
    """A raw disk in a file."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path: Path | None = path
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor

    def read(self, offset: int, length: int) -> bytes:
        """See `Blocks.read`."""
        data = os.pread(self._descriptor, length, offset) if 0 <= offset <= self.size else b""
        if len(data) != length:
            raise beyond(offset)
        return data


@contextmanager
def raw_file(path: Path) -> Iterator[RawFile]:
    """Open a raw disk."""
    with path.open("rb") as file:
        yield RawFile(path, file.fileno())


def beyond(offset: int) -> ObuildError:
    """The error for a read at `offset` that the disk does not have."""
    return ObuildError(f"the file system is damaged: it refers to byte {offset}, where the disk has ended")
