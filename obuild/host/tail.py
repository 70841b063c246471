"""The end of a program's output, for an error message."""

from __future__ import annotations

import os
from typing import BinaryIO

#: How many bytes are kept.
KEPT = 2000


class Tail:
    """Keeps the last `kept` bytes of the output; call it with each piece as it comes."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._end = bytearray()

    def __call__(self, data: bytes) -> None:
        self._end += data[-self._kept :]
        del self._end[: -self._kept]

    @property
    def data(self) -> bytes:
        """The end of the output."""
        return bytes(self._end)

    @property
    def text(self) -> str:
        """The end of the output, as text that a message can quote."""
        return self._end.decode(errors="replace").strip()


def end_of(file: BinaryIO) -> str:
    """The end of what a program that may still run has written to a file, as such text."""
    size = os.fstat(file.fileno()).st_size
    # Not at the file's position: the program moves that.
    return os.pread(file.fileno(), KEPT, max(0, size - KEPT)).decode(errors="replace").strip()
