"""A row for what takes a while, at the bottom of the terminal, by the means of the live view of builds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TextIO

from obuild.cli.console import environment, errors
from obuild.cli.live.look import can_draw, look

if TYPE_CHECKING:
    from obuild.cli.live.drawer import Drawer
    from obuild.cli.live.rows import Row

#: What takes less shows no row, in seconds.
DELAY = 1.0

#: How wide the bar itself is, and the narrowest terminal that has one.
_WIDTH, _NARROW = 20, 60


class Bar:
    """Shows what is going on, if `out` is a terminal, and how far it is. The row goes when the block ends."""

    def __init__(
        self, what: str, out: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what = what
        self._out = out or errors()
        self._clock = clock
        self._began = clock()
        self._done = self._total = self._from = 0
        self._drawer: Drawer | None = None

    def __enter__(self) -> Bar:
        if self._out.isatty() and can_draw(environment()):
            from obuild.cli.live.drawer import Drawer  # late: seldom needed

            self._drawer = Drawer(self._out.buffer, self.rows, look(environment()), delay=DELAY)
            self._drawer.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._drawer:
            self._drawer.close()

    def __call__(self, done: int, total: int) -> None:
        """`done` bytes of `total` are done; `total` is 0 if unknown. Any thread may call it."""
        if done < self._done or total != self._total:  # something else begins
            self._began, self._from = self._clock(), done
        self._done, self._total = done, total

    def under(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """Return a function that calls `say`, whose text goes above the row."""

        def told(text: str) -> None:
            with self.paused():
                say(text)

        return told

    def paused(self) -> AbstractContextManager[None]:
        """The terminal is the caller's until the block ends."""
        return self._drawer.paused() if self._drawer else nullcontext()

    def rows(self, columns: int, lines: int) -> Sequence[Row]:
        """The row. What was there already when it began, as of an upload that goes on, has no part in the rate."""
        from obuild.cli.live.rows import Row, amount  # late, as above

        spent = self._clock() - self._began
        left = self._what
        if self._total and columns >= _NARROW:
            full = min(_WIDTH, self._done * _WIDTH // self._total)
            left += f" [{'#' * full}{'-' * (_WIDTH - full)}]{min(100, self._done * 100 // self._total):4}%"
        return [Row(left, amount(self._done, self._total, spent, known=self._from), "step")]
