"""Draws rows again and again, from a thread of its own, so that a slow terminal holds up nothing else.

The process has one terminal, so what is process-wide here has to be: the handler of SIGTSTP, and sys.stderr, whose
text goes above the rows meanwhile.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO, TextIO

from obuild.cli.live.look import Look
from obuild.cli.live.rows import Row
from obuild.cli.live.screen import Drawn, Screen
from obuild.errors import OutputError

#: How often the rows are drawn, if they have changed, in seconds.
PERIOD = 0.25

#: How long to wait for a terminal that takes no output, at the end, in seconds.
_PATIENCE = 5.0

_END, _STOP = b"q", b"z"


class Drawer:
    """Draws `rows(columns, lines)` at the bottom of the terminal `out`, from `delay` seconds after `start` on.

    All methods are for the thread that made it, but `above` is for all. If the terminal goes away, nothing more is
    drawn.
    """

    def __init__(
        self, out: BinaryIO, rows: Callable[[int, int], Sequence[Row]], look: Look, *, delay: float
    ) -> None:
        self._screen = Screen(out)
        self._rows = rows
        self._look = look
        self._delay = delay
        self._lock = threading.RLock()  # held while something is written to the terminal
        self._above: list[bytes] = []
        self._last: object = None
        self._size = self._screen.size()
        self._paused = 0  # the thread that has the terminal instead
        self._thread: threading.Thread | None = None
        self._stderr: _Above | None = None
        self._before: object = None
        self.gone = False

    def start(self) -> None:
        """Start the thread."""
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(ValueError):  # only the main thread may
            if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:
                self._before = signal.signal(signal.SIGTSTP, self._asked_to_stop)
        self._stderr = _Above(sys.stderr, self)
        sys.stderr = self._stderr
        self._thread = threading.Thread(target=self._run, name="drawing", daemon=True)
        self._thread.start()

    def above(self, data: bytes) -> None:
        """Have whole lines written above the rows: with the next drawing, or at once by who has it paused."""
        self._above.append(data)
        if self._paused == threading.get_ident():
            self._draw(())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The terminal is the caller's until the block ends."""
        with self._lock:
            self._draw(())
            self._paused = threading.get_ident()
            try:
                yield
            finally:
                self._paused = 0
                self._last = None

    def close(self) -> None:
        """Stop drawing, and remove the rows; what was to go above them is written."""
        if self._thread is None:
            return
        try:
            self._tell(_END)
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                self.gone = True
        finally:
            self._thread = None
            if self._before is not None:
                signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            if self._stderr and sys.stderr is self._stderr:
                sys.stderr = self._stderr.real
        if not self.gone:
            self._draw(())
            if self._stderr:
                self._stderr.end()
        os.close(self._write)

    def _run(self) -> None:
        started = time.monotonic()
        try:
            while not self._ended(started):
                pass
        finally:
            os.close(self._read)

    def _ended(self, started: float) -> bool:
        """Wait for the next moment to draw, and draw. True if we were told to end."""
        ready, _, _ = select.select([self._read], [], [], PERIOD)
        asked = os.read(self._read, 64) if ready else b""
        if ready and (_END in asked or not asked):
            return True
        with self._lock:
            if _STOP in asked:
                self._stop()
            elif time.monotonic() - started >= self._delay and self._screen.is_ours():
                self._draw_changed()
        return False

    def _draw_changed(self) -> None:
        size = self._screen.size()
        if size != self._size:  # it may still be changing, and a terminal may be ahead of what it tells us
            self._size = size
            return
        rows = self._rows(*size)
        if self._above or (rows, size) != self._last:
            from obuild.cli.live.paint import drawn  # late: not before there is something to see

            self._draw(drawn(rows, size[0], self._look))
            self._last = rows, size

    def _draw(self, rows: Sequence[Drawn]) -> None:
        above = b""
        while self._above:
            above += self._above.pop(0)
        if self.gone:
            return
        try:
            self._screen.draw(rows, above)
        except (OSError, OutputError):
            self.gone = True

    def _stop(self) -> None:
        """Stop like other programs when the user types Ctrl-Z, with the rows out of the way."""
        self._draw(())
        os.kill(os.getpid(), signal.SIGSTOP)  # returns when we are continued
        self._last = None

    def _asked_to_stop(self, number: int, frame: object) -> None:
        self._tell(_STOP)  # no more here: we may have interrupted what holds the lock

    def _tell(self, what: bytes) -> None:
        with suppress(BlockingIOError):  # it has not read the last ones yet
            os.write(self._write, what)


class _Above:
    """sys.stderr while rows are drawn: text goes above them."""

    def __init__(self, real: TextIO, drawer: Drawer) -> None:
        self.real = real
        self._drawer = drawer
        self._begun = ""  # a line that has not ended; print() writes its end by itself

    def write(self, text: str) -> int:
        lines, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            with self._drawer.paused():
                self.real.write(lines + newline)
                self.real.flush()
        return len(text)

    def flush(self) -> None:
        """Whole lines are written at once."""

    def end(self) -> None:
        """Write the line that has not ended."""
        self.real.write(self._begun)
        self.real.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)
