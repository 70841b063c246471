"""The end of a step's output, for a terminal."""

from __future__ import annotations

from collections import deque

from obuild.host import printable

#: How many bytes of a step's output are kept: what scrolls up when it is finished.
KEPT = 1 << 16

#: How many bytes at the end are looked at for the lines below a running step.
_SHOWN = 1 << 13


class Output:
    """Keeps the end of what a step prints: the pieces as they came, so that to add one copies nothing."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._before = 0  # how many bytes came before these pieces

    def add(self, data: bytes) -> None:
        """Take the next piece."""
        self._pieces.append(data)
        self._size += len(data)
        while self._size - len(self._pieces[0]) >= KEPT:
            gone = len(self._pieces.popleft())
            self._size -= gone
            self._before += gone

    @property
    def dropped(self) -> int:
        """How many bytes came before what is kept."""
        return self._before + max(0, self._size - KEPT)

    def last(self, count: int) -> list[str]:
        """The last lines, at most `count`, as they can be shown."""
        return printable.lines(self._end(_SHOWN))[-count:] if count > 0 else []

    def lines(self) -> list[str]:
        """All lines that were kept. If earlier ones were dropped, the first is a whole one."""
        data = self._end(KEPT)
        if self.dropped:
            data = data.partition(b"\n")[2] or data
        return printable.lines(data)

    def _end(self, size: int) -> bytes:
        found: list[bytes] = []
        for piece in reversed(self._pieces):
            found.append(piece[-size:])
            size -= len(found[-1])
            if size <= 0:
                break
        return b"".join(reversed(found))
