"""stdin, stdout and stderr, whatever we were started with: closed, on a full disk, or a pipe without a reader.

A closed one is opened on /dev/null. Otherwise the next file opened would get its number, and what is printed would
go into the store's index. A failed write to stdout has an error of its own, so that the store is not blamed.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TextIO

from obuild.errors import OutputError


def prepare() -> None:
    """Make all three usable. Call this before any file is opened that stays open."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _open_null(number)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # for the life of the process
    sys.stdout = _text(sys.stdout, _Output(1))
    sys.stderr = _text(sys.stderr, _Complaints(2))


def forget_output() -> None:
    """Drop what is still to be written to stdout: writing it failed, and Python would try again at exit."""
    _open_null(sys.stdout.fileno())


def _open_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null == number:
        os.set_inheritable(number, True)
        return
    os.dup2(null, number)
    os.close(null)


def _text(was: TextIO | None, raw: io.RawIOBase) -> TextIO:
    """A text stream over `raw`, with the settings of the one that Python made, if it made one."""
    out = io.BufferedWriter(raw)
    if not isinstance(was, io.TextIOWrapper):
        return io.TextIOWrapper(out, encoding="utf-8", errors="backslashreplace")
    return io.TextIOWrapper(
        out,
        encoding=was.encoding,
        errors=was.errors,
        line_buffering=was.line_buffering,
        write_through=was.write_through,
    )


class _Output(io.RawIOBase):
    """A file descriptor to write to. OutputError if that fails; BrokenPipeError if the reader has gone."""

    def __init__(self, number: int) -> None:
        self._number = number

    def write(self, data: object) -> int:
        while True:
            try:
                return os.write(self._number, data)  # type: ignore[arg-type]  # a buffer, says BufferedWriter
            except BlockingIOError:  # another program has made the terminal non-blocking
                select.select([], [self._number], [])
            except BrokenPipeError:
                raise
            except OSError as error:
                raise OutputError(f"cannot write to stdout: {error.strerror}") from error

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)


class _Complaints(_Output):
    """As _Output, but what cannot be written is dropped: there is nowhere left to report it."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)
        except (OSError, OutputError):
            return memoryview(data).nbytes  # type: ignore[arg-type]
