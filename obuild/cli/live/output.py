"""The end of a step's output, for a terminal."""

from __future__ import annotations

from obuild.host import printable

#: How many bytes of a step's output are kept: what scrolls up when it is finished.
KEPT = 1 << 16

#: How many bytes at the end are looked at for the lines below a running step.
_SHOWN = 1 << 13


class Output:
    """Keeps the end of what a step prints. To add a piece costs no more than to copy its end."""

    def __init__(self) -> None:
        self._end = bytearray()
        self.dropped = 0  # how many bytes came before

    def add(self, data: bytes) -> None:
        """Take the next piece."""
        self._end += data[-KEPT:]
        self.dropped += max(0, len(data) - KEPT)
        if len(self._end) > 2 * KEPT:
            self._trim()

    def last(self, count: int) -> list[str]:
        """The last lines, at most `count`, as they can be shown."""
        return printable.lines(bytes(self._end[-_SHOWN:]))[-count:] if count > 0 else []

    def lines(self) -> list[str]:
        """All lines that were kept. If earlier ones were dropped, the first is a whole one."""
        self._trim()
        data = bytes(self._end)
        if self.dropped:
            data = data.partition(b"\n")[2] or data
        return printable.lines(data)

    def _trim(self) -> None:
        surplus = len(self._end) - KEPT
        if surplus > 0:
            del self._end[:surplus]
            self.dropped += surplus
