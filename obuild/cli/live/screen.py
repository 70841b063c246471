"""Rows at the bottom of a terminal that are drawn again and again, below what scrolls up.

The cursor stays at the start of the last row and is never hidden, so even a process that is killed leaves a usable
terminal. Lines above the rows are written once and belong to the terminal from then on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple


class Drawn(NamedTuple):
    """A row as it is sent to a terminal, and how many columns it takes there."""

    codes: str
    width: int


class Screen:
    """The bottom of the terminal `out`. OSError or OutputError if it has gone."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._rows: Sequence[Drawn] = ()

    def size(self) -> tuple[int, int]:
        """Columns and lines, at least one of each."""
        try:
            columns, lines = os.get_terminal_size(self._out.fileno())
        except OSError:
            return 80, 24
        return columns or 80, lines or 24  # a serial console has neither

    def is_ours(self) -> bool:
        """Whether we are in the foreground; if not, the terminal is another program's for now."""
        try:
            return os.tcgetpgrp(self._out.fileno()) == os.getpgrp()
        except OSError:  # it is not our controlling terminal
            return True

    def draw(self, rows: Sequence[Drawn], above: bytes = b"") -> None:
        """Replace the rows. `above` is for the scrollback, and ends with a newline."""
        if not rows and not above and not self._rows:
            return
        out = [self._clear(), above, b"\n".join(row.codes.encode(errors="replace") for row in rows), b"\r"]
        self._rows = tuple(rows)
        self._out.write(b"".join(out))
        self._out.flush()

    def _clear(self) -> bytes:
        """Clear what the rows take now, and go to the start of the first.

        Rows that are wider than the terminal have been wrapped since they were drawn. Each line is cleared by
        itself: what clears the whole screen would put it into the scrollback of some terminals.
        """
        columns = self.size()[0]
        heights = [max(1, -(-row.width // columns)) for row in self._rows] or [1]
        down = sum(heights) - 1
        return b"".join(
            (b"\r", _moved(sum(heights[:-1]), b"A"), b"\x1b[K", b"\x1b[B\x1b[K" * down, _moved(down, b"A"))
        )


def _moved(count: int, letter: bytes) -> bytes:
    """Move the cursor up (A) or down (B), if at all: a terminal takes 0 for 1."""
    return b"\x1b[%d%s" % (count, letter) if count else b""
