"""Lines for the log of a CI job: OBuilder's, with the time since the start and the stage in front.

A step that prints nothing for a while is reported, so that nobody takes the job for dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, BinaryIO

from obuild.cli.folding import Fold
from obuild.cli.live.rows import phase_name
from obuild.cli.live.state import State
from obuild.cli.text import Lines
from obuild.events import Event, PhaseStarted
from obuild.host import units

if TYPE_CHECKING:
    import threading

#: After how many seconds without a line a step is reported, again and again.
QUIET = 30.0

#: The longest line that is waited for, in bytes.
_LONGEST = 1 << 16

#: How often to look for quiet steps, in seconds.
_PERIOD = 1.0


class Plain(Lines):
    """Writes events to `out`; a context manager, which ends its thread.

    Lines of several stages may come mixed, since each names its stage. With `fold`, the output of each step is
    marked as a part of the log that can be folded; parts cannot be mixed, but cli/turns.py keeps stages apart.
    Of a line that a progress bar has written again and again, only the last state is shown.
    """

    def __init__(self, out: BinaryIO, *, fold: Callable[[], Fold] | None = None) -> None:
        super().__init__(out, colour=False)
        self._new_fold = fold
        self._fold = fold() if fold else None
        self.mixed = fold is None
        self._folding = False
        self._state = State()
        self._began: float | None = None
        self._now = 0.0
        self._stage = ""
        self._ends: dict[str, bytes] = {}  # by stage: the beginning of a line that has not ended
        self._heard: dict[str, float] = {}  # by stage: when its last line was written
        self._lock: AbstractContextManager[object] = nullcontext()
        self._over: threading.Event | None = None

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *why: object) -> None:
        if self._over:
            self._over.set()
        with self._lock:
            for stage in list(self._ends):
                self._stage = stage
                self.end_line()
            self._end_fold()

    def __call__(self, event: Event) -> None:
        if isinstance(event.what, PhaseStarted) and not self._over:
            self._watch()
        with self._lock:
            self._state.apply(event)
            self._began = self._began or event.time
            self._now, self._stage = event.time, event.place.stage
            super().__call__(event)

    def to(self, out: BinaryIO) -> Plain:
        """Return a writer with the same settings for another file. It reports no quiet steps."""
        import threading

        other = Plain(out, fold=self._new_fold)
        other._began, other._over = self._began, threading.Event()
        return other

    def append(self, file: BinaryIO) -> None:
        """Write the rest of a file that such a writer has written."""
        while data := file.read(_LONGEST):
            self._out.write(data)
            self._out.flush()

    def end_line(self) -> None:
        """End the current line of the stage, unless it is empty."""
        if rest := self._ends.pop(self._stage, b""):
            self._begin_fold()
            self._write(rest)

    def report_quiet(self, now: float) -> None:
        """Write a line for each step at work that has printed nothing for a while."""
        with self._lock:
            for stage in self._state.active():
                step = stage.step
                if not step or not step.phases or now - self._heard.get(stage.path, now) < QUIET:
                    continue
                self._now, self._stage = now, stage.path
                self._line(f"still {phase_name(step.phases[-1])} after {units.clock(now - step.began)}", b"")

    def _watch(self) -> None:
        import threading  # late: a fully cached build needs none

        self._lock = threading.RLock()
        self._over = over = threading.Event()

        def watch() -> None:
            while not over.wait(_PERIOD):
                self.report_quiet(time.time())

        threading.Thread(target=watch, name="quiet steps", daemon=True).start()

    def _raw(self, data: bytes) -> None:
        whole, newline, rest = (self._ends.pop(self._stage, b"") + data).rpartition(b"\n")
        if newline or len(rest) > _LONGEST:
            self._begin_fold()
            if newline:
                self._write(whole)
            if len(rest) > _LONGEST:
                self._write(rest)
                rest = b""
        if rest:
            self._ends[self._stage] = rest

    def _line(self, text: str, colour: bytes) -> None:
        self.end_line()
        self._end_fold()
        self._write(text.encode("utf-8", "surrogateescape"))

    def _write(self, lines: bytes) -> None:
        """Write one line or several, and the newline after them."""
        if b"\r" in lines:
            lines = b"\n".join(line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines.split(b"\n"))
        before = self._before().encode("utf-8", "surrogateescape")
        self._out.write(before + lines.replace(b"\n", b"\n" + before) + b"\n")
        self._out.flush()
        self._heard[self._stage] = self._now

    def _before(self) -> str:
        """What is in front of each line."""
        name = f"{self._stage}: " if self._stage else ""
        return f"[{self._now - (self._began or self._now):7.1f}] {name}"

    def _begin_fold(self) -> None:
        if self._fold and not self._folding:
            self._out.write(self._fold.begin(f"{self._before()}output", self._now).encode("utf-8", "replace"))
            self._folding = True

    def _end_fold(self) -> None:
        if self._fold and self._folding:
            self._out.write(self._fold.end(self._now).encode())
            self._out.flush()
            self._folding = False
