"""A user at a terminal, who runs the program."""

from __future__ import annotations

import os
import select
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: How long an emulated guest may take to boot, in seconds.
LONG = 120.0


class Typist:
    """The user at the terminal."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.seen = b""

    def expect(self, text: bytes) -> None:
        """Read until this text appears, and discard it and everything before it."""
        deadline = time.monotonic() + LONG
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], deadline - time.monotonic())
            assert ready, self.seen
            self.seen += os.read(self.fd, 65536)
        self.seen = self.seen.partition(text)[2]

    def type(self, line: bytes) -> None:
        os.write(self.fd, line + b"\r")


@contextmanager
def at_a_terminal(argv: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], Typist]]:
    """The program with its own terminal, which must be restored afterwards."""
    ours, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    termios.tcsetwinsize(theirs, (33, 101))
    enter = (
        "import os, sys, termios, fcntl; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )
    child = subprocess.Popen(
        [argv[0], "-c", enter, *argv],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "vt52"},
    )
    try:
        yield child, Typist(ours)
        assert termios.tcgetattr(theirs) == before
    finally:
        child.kill()
        child.wait()
        os.close(ours)
        os.close(theirs)
