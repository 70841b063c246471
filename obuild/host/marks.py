"""Marks the end of a command's output: a random word in the same stream, followed by the exit status."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from obuild.host.mask import overlap


def new_mark() -> str:
    """A word that no output contains by chance."""
    return f"obuild-{secrets.token_hex(16)}"


class MarkReader:
    """Splits a stream at `MARK STATUS\\n`: what comes before goes to `output`, as early as is safe.

    What comes after is dropped.
    """

    def __init__(self, mark: bytes, output: Callable[[bytes], object]) -> None:
        self._mark = mark
        self._output = output
        self._held = b""
        self.status: int | None = None

    def feed(self, data: bytes) -> None:
        if self.status is not None:
            return
        self._held += data
        before, found, after = self._held.partition(self._mark)
        if found:
            line, newline, _ = after.partition(b"\n")
            if newline or len(after) > 8:
                self._emit(before)
                self.status = int(line) if line.isdigit() and len(line) < 4 else 255
            return
        keep = overlap(self._held, self._mark)
        self._emit(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]

    def flush(self) -> None:
        self._emit(self._held)
        self._held = b""

    def _emit(self, data: bytes) -> None:
        if data:
            self._output(data)
