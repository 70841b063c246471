"""The local end of an interactive shell: our terminal, in raw mode meanwhile, or pipes."""

from __future__ import annotations

import os
import signal
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn, Protocol

from obuild.host import process

#: How long to wait for output of a program that has ended while something else keeps its output open, in seconds.
IDLE = 1.0

#: How often to poll what no file descriptor signals, in seconds: a far end that takes no input now, or that has
#: closed its output but still runs.
POLL = 0.02

_CHUNK = 1 << 16


class Line(Protocol):
    """The far end. No method blocks."""

    def fileno(self) -> int | None:
        """Readable when there is output, or its end; None once there will be no more."""

    def ended(self, *, idle: bool) -> bool:
        """Whether it has ended and all output has come; `idle` if none has come for a while."""

    def receive(self) -> tuple[bytes, bytes]:
        """What has come on its stdout and on its stderr."""

    def send(self, data: bytes) -> int:
        """Send input; returns how many bytes it takes now."""

    def end_input(self) -> None:
        """Send the end of the input."""

    def resize(self, columns: int, lines: int) -> None:
        """Send the terminal's new size."""


#: Waits for some of the file descriptors to become readable, at most so many seconds, and returns those.
Wait = Callable[..., Sequence[int]]


@dataclass(frozen=True, slots=True)
class Terminal:
    """Three file descriptors. The session is interactive if the first is a terminal."""

    stdin: int = 0
    stdout: int = 1
    stderr: int = 2

    @property
    def typed(self) -> bool:
        """Whether the input is typed at a terminal."""
        return os.isatty(self.stdin)

    @property
    def name(self) -> str:
        """The terminal's name, as in TERM."""
        return process.terminal_name()

    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        with suppress(OSError):
            columns, lines = os.get_terminal_size(self.stdin)
            if columns and lines:  # a serial console has neither
                return columns, lines
        return 80, 24

    def join(self, line: Line, wait: Wait) -> None:
        """Connect the terminal to a line until that ends.

        The terminal is in raw mode meanwhile, and restored afterwards, whatever happens. KeyboardInterrupt if the
        user leaves by typing `~.` at the start of a line (Ctrl-C goes to the guest), or if the terminal goes away.
        """
        if not self.typed:
            _carry(self, line, wait, None, lambda data: data)
            return
        with _raw(self.stdin) as resized:
            _carry(self, line, wait, resized, Escape())


class Escape:
    """Finds `~.` at the start of a typed line; `~~` sends one `~`, as in ssh."""

    def __init__(self) -> None:
        self._fresh = True
        self._held = False

    def __call__(self, data: bytes) -> bytes:
        """What to send. KeyboardInterrupt if the user leaves, or if the terminal has gone."""
        if not data:
            raise KeyboardInterrupt
        passed = bytearray()
        for byte in data:
            if self._held:
                self._held = False
                if byte == ord("."):
                    raise KeyboardInterrupt
                if byte != ord("~"):
                    passed += b"~"
            elif self._fresh and byte == ord("~"):
                self._held = True
                continue
            passed.append(byte)
            self._fresh = byte in b"\r\n"
        return bytes(passed)


def _carry(
    terminal: Terminal, line: Line, wait: Wait, resized: int | None, filter: Callable[[bytes], bytes]
) -> None:
    pending = b""  # typed, but not sent yet
    typing, idle = True, False
    while True:
        ended = line.ended(idle=idle)  # before `receive`: what comes after it is for the next turn
        output, errors = line.receive()
        _write(terminal.stdout, output)
        _write(terminal.stderr, errors)
        if ended and not output and not errors:
            return
        if pending:
            pending = pending[line.send(pending) :]
        heard = line.fileno()
        wanted = (heard, resized, terminal.stdin if typing and not pending else None)
        ready = wait(POLL if pending or heard is None else IDLE, *(fd for fd in wanted if fd is not None))
        idle = not ready and not pending
        if resized is not None and resized in ready:
            os.read(resized, _CHUNK)
            line.resize(*terminal.size())
        if terminal.stdin in ready:
            data = _read(terminal.stdin)
            pending = filter(data)
            if not data:
                typing = False
                line.end_input()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError:  # the terminal has gone
        return b""


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


@contextmanager
def _raw(fd: int) -> Iterator[int]:
    """Put a terminal in raw mode until the block ends; yields a descriptor, readable when the size has changed."""
    resized, ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def changed(number: int, frame: object) -> None:
        with suppress(BlockingIOError):  # one is pending already
            os.write(ring, b"\0")

    before = termios.tcgetattr(fd)
    try:
        with _signals({signal.SIGWINCH: changed, signal.SIGHUP: _leave}):
            tty.setraw(fd, termios.TCSADRAIN)
            yield resized
    finally:
        with suppress(termios.error):  # the terminal has gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
        os.close(resized)
        os.close(ring)


def _leave(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _signals(handlers: dict[signal.Signals, Callable[[int, object], object]]) -> Iterator[None]:
    """Install these signal handlers until the block ends; in any thread but the main one, do nothing."""
    before = {}
    try:
        with suppress(ValueError):
            for number, handler in handlers.items():
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
