"""The end of what a program prints: enough for a message, however much it was."""

from __future__ import annotations

#: How many bytes are kept.
KEPT = 2000


class Tail:
    """Call it with each piece as it comes; it keeps the end."""

    def __init__(self) -> None:
        self._end = bytearray()

    def __call__(self, data: bytes) -> None:
        self._end += data[-KEPT:]
        del self._end[:-KEPT]

    @property
    def text(self) -> str:
        """The end, as text that a message can quote."""
        return self._end.decode(errors="replace").strip()
