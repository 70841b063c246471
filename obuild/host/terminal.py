"""Our end of an interactive shell: the terminal that we were started in, raw for that time, or pipes."""

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

#: How long nothing may come of a program that has ended while something else holds its output open, in seconds.
IDLE = 1.0

#: How long to wait for what no file descriptor tells of, before it is asked again, in seconds: a far end that
#: takes no input now, or has closed its output and goes on.
POLL = 0.02

_CHUNK = 1 << 16


class Line(Protocol):
    """The far end. None of it blocks."""

    def fileno(self) -> int | None:
        """Can be read when there is output, or the end of it; None once there will be no more."""

    def ended(self, *, idle: bool) -> bool:
        """Whether it is over, and all of the output has come; `idle` if none has for a while."""

    def receive(self) -> tuple[bytes, bytes]:
        """What has come of its output and of its error output."""

    def send(self, data: bytes) -> int:
        """How many bytes of the input it takes now."""

    def end_input(self) -> None:
        """Say that there is no more input."""

    def resize(self, columns: int, lines: int) -> None:
        """Say that the terminal has another size."""


#: Waits so many seconds until some of the file descriptors can be read, and returns those.
Wait = Callable[..., Sequence[int]]


@dataclass(frozen=True, slots=True)
class Terminal:
    """Three file descriptors. What is typed comes from a terminal if the first is one."""

    stdin: int = 0
    stdout: int = 1
    stderr: int = 2

    @property
    def typed(self) -> bool:
        """Whether there is somebody who types."""
        return os.isatty(self.stdin)

    @property
    def name(self) -> str:
        """What programs know the terminal by."""
        return process.terminal_name()

    def size(self) -> tuple[int, int]:
        """Its columns and lines."""
        with suppress(OSError):
            columns, lines = os.get_terminal_size(self.stdin)
            if columns and lines:  # a serial console knows neither
                return columns, lines
        return 80, 24

    def join(self, line: Line, wait: Wait) -> None:
        """Carry to a line what is typed, and back what it says, until that ends.

        A terminal is raw meanwhile, and as it was afterwards, whatever happens. KeyboardInterrupt if the user
        leaves by typing `~.` at the start of a line, for Ctrl-C is the guest's, or if the terminal goes away.
        """
        if not self.typed:
            _carry(self, line, wait, None, lambda data: data)
            return
        with _raw(self.stdin) as resized:
            _carry(self, line, wait, resized, Escape())


class Escape:
    """Finds `~.` at the start of a line in what is typed; `~~` there is one of them, as in ssh."""

    def __init__(self) -> None:
        self._fresh = True
        self._held = False

    def __call__(self, data: bytes) -> bytes:
        """What is left to be sent. KeyboardInterrupt if the user leaves, or if the terminal has gone."""
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
    pending = b""  # typed, and not taken yet
    typing, idle = True, False
    while True:
        ended = line.ended(idle=idle)  # asked first: what comes after it is for the next turn
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
    """Make a terminal raw until the block ends; yields what can be read when its size has changed."""
    resized, ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def changed(number: int, frame: object) -> None:
        with suppress(BlockingIOError):  # nobody has looked yet
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
    """Handle these signals so until the block ends. In a thread other than the first none can be."""
    before = {}
    try:
        with suppress(ValueError):
            for number, handler in handlers.items():
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
