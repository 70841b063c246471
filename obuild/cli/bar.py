"""A progress bar for downloads, exports and uploads, on one line of the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from obuild.host import units

#: How often the line is redrawn, in seconds.
_EVERY = 0.2

_WIDTH = 24


class Bar:
    """Draws the line if `out` is a terminal, else nothing. The line is erased when the `with` block ends."""

    def __init__(self, out: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._drawn = float("-inf")
        self._begun: tuple[float, int] | None = None
        self._shown = False

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._wipe()

    def __call__(self, done: int, total: int) -> None:
        """`done` bytes of `total` are done; `total` is 0 if unknown."""
        now = self._clock()
        if self._begun is None or done < self._begun[1]:
            self._begun = (now, done)
        if self._out.isatty() and now - self._drawn >= _EVERY:
            self._drawn, self._shown = now, True
            begun, at = self._begun
            rate = (done - at) / (now - begun) if now > begun else 0.0
            self._out.write(f"\r\x1b[K{line(done, total, rate)}")
            self._out.flush()

    def under(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """Return a function that erases the line, then calls `say`."""

        def told(text: str) -> None:
            self._wipe()
            self._begun = None
            say(text)

        return told

    def _wipe(self) -> None:
        if self._shown:
            self._out.write("\r\x1b[K")
            self._out.flush()
            self._shown = False


def line(done: int, total: int, rate: float) -> str:
    """Return a line like `[#####-----]  50%  1.0 GiB of 2.0 GiB  8.0 MiB/s`. `rate` is in bytes per second."""
    speed = f"  {units.size(int(rate))}/s" if rate else ""
    if not total:
        return f"{units.size(done)}{speed}"
    full = min(_WIDTH, done * _WIDTH // total)
    bar = "#" * full + "-" * (_WIDTH - full)
    return f"[{bar}] {min(100, done * 100 // total):3}%  {units.size(done)} of {units.size(total)}{speed}"
