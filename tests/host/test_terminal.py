"""The local end of a shell: input goes out, output comes in, and the terminal is restored afterwards."""

from __future__ import annotations

import os
import select
import signal
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from obuild.errors import MachineError
from obuild.host.terminal import Escape, Terminal


@dataclass
class Far:
    """The far end: gets what is typed, calls `act` with it, and ends when `end` is called."""

    act: Callable[[Far], object] = lambda far: None
    takes: list[int] = field(default_factory=list)  # bytes, call by call; then all
    heard: bytes = b""
    no_more: bool = False
    over: bool = False
    sizes: list[tuple[int, int]] = field(default_factory=list)
    said: list[tuple[bytes, bytes]] = field(default_factory=list)
    ring: tuple[int, int] = field(default_factory=os.pipe)

    def say(self, output: bytes, errors: bytes = b"") -> None:
        self.said.append((output, errors))
        os.write(self.ring[1], b"\0")

    def end(self) -> None:
        self.over = True
        os.write(self.ring[1], b"\0")

    def fileno(self) -> int:
        return self.ring[0]

    def ended(self, *, idle: bool) -> bool:
        return self.over

    def receive(self) -> tuple[bytes, bytes]:
        return self.said.pop(0) if self.said else (b"", b"")

    def send(self, data: bytes) -> int:
        taken = self.takes.pop(0) if self.takes else len(data)
        self.heard += data[:taken]
        self.act(self)
        return taken

    def end_input(self) -> None:
        self.no_more = True
        self.end()

    def resize(self, columns: int, lines: int) -> None:
        self.sizes.append((columns, lines))
        self.end()


def wait(seconds: float, *fds: int) -> Sequence[int]:
    return select.select(fds, [], [], min(seconds, 0.01))[0]


@dataclass
class Pty:
    """Both ends of a terminal, and the settings that the user's end had at first."""

    ours: int
    theirs: int
    before: list[object]

    @property
    def at(self) -> Terminal:
        return Terminal(self.theirs, self.theirs, self.theirs)

    def is_as_it_was(self) -> bool:
        return termios.tcgetattr(self.theirs) == self.before


@pytest.fixture
def pty() -> Iterator[Pty]:
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (33, 101))
    yield Pty(ours, theirs, termios.tcgetattr(theirs))
    os.close(theirs)
    os.close(ours)


@pytest.fixture
def types(pty: Pty, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Type as soon as the terminal is raw."""
    set_raw = tty.setraw

    def later(data: bytes) -> None:
        def and_type(fd: int, when: int) -> None:
            set_raw(fd, when)
            os.write(pty.ours, data)

        monkeypatch.setattr(tty, "setraw", and_type)

    return later


Types = Callable[[bytes], None]


def test_pipes_are_copied_both_ways_to_their_ends() -> None:
    stdin, typed = os.pipe()
    out, stdout = os.pipe()
    err, stderr = os.pipe()
    os.write(typed, b"typed")
    os.close(typed)
    far = Far(act=lambda far: far.say(b"out", b"err"))
    Terminal(stdin, stdout, stderr).join(far, wait)
    assert (far.heard, far.no_more) == (b"typed", True)
    assert (os.read(out, 100), os.read(err, 100)) == (b"out", b"err")
    for fd in (stdin, out, stdout, err, stderr):
        os.close(fd)


def test_a_far_end_that_reads_slowly_gets_all_input_while_its_output_is_shown() -> None:
    stdin, typed = os.pipe()
    out, stdout = os.pipe()
    os.write(typed, b"0123456789")
    os.close(typed)
    far = Far(act=lambda far: far.say(b"."), takes=[3, 0, 0, 4, 0])
    Terminal(stdin, stdout, stdout).join(far, wait)
    assert far.heard == b"0123456789"
    assert os.read(out, 100) == b"......"
    for fd in (stdin, out, stdout):
        os.close(fd)


def test_every_key_goes_to_the_guest_and_nothing_is_echoed_locally(pty: Pty, types: Types) -> None:
    keys = b"\x03\x04\x1a\x1c\x11\x13\r\n\xff"
    types(keys)

    def act(far: Far) -> None:
        if far.heard == keys:
            far.say(b"heard\n")
            far.end()

    pty.at.join(Far(act), wait)
    assert os.read(pty.ours, 100) == b"heard\n"  # and no CR: the guest's terminal adds what is needed
    assert pty.is_as_it_was()


def fails(far: Far) -> None:
    raise MachineError("the guest panicked")


def hang_up(far: Far) -> None:
    os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.parametrize(("act", "error"), [(fails, MachineError), (hang_up, KeyboardInterrupt)])
def test_the_terminal_is_restored_whatever_happens(
    pty: Pty, types: Types, act: Callable[[Far], object], error: type[BaseException]
) -> None:
    types(b"x")
    handlers = [signal.getsignal(number) for number in (signal.SIGWINCH, signal.SIGHUP)]
    with pytest.raises(error):
        pty.at.join(Far(act), wait)
    assert pty.is_as_it_was()
    assert [signal.getsignal(number) for number in (signal.SIGWINCH, signal.SIGHUP)] == handlers


def test_a_resized_window_resizes_the_guests_terminal(pty: Pty, types: Types) -> None:
    def act(far: Far) -> None:
        termios.tcsetwinsize(pty.ours, (44, 55))
        os.kill(os.getpid(), signal.SIGWINCH)

    types(b"x")
    far = Far(act)
    assert pty.at.size() == (101, 33)
    pty.at.join(far, wait)
    assert far.sizes == [(55, 44)]


def test_a_terminal_without_a_size_gets_the_default(pty: Pty) -> None:
    termios.tcsetwinsize(pty.ours, (0, 0))
    assert pty.at.size() == (80, 24)
    assert Terminal(pty.at.stdin).typed
    with open(os.devnull) as null:  # noqa: PTH123
        assert Terminal(null.fileno()).size() == (80, 24)
        assert not Terminal(null.fileno()).typed


def test_a_terminal_that_goes_away_ends_the_session(pty: Pty, types: Types) -> None:
    def close(far: Far) -> None:
        os.dup2(far.ring[0], pty.ours)

    types(b"x")
    with pytest.raises(KeyboardInterrupt):
        pty.at.join(Far(close), wait)


def test_a_session_in_a_thread_works_without_signal_handlers(pty: Pty, types: Types) -> None:
    types(b"x")
    far = Far(act=Far.end)
    thread = threading.Thread(target=pty.at.join, args=(far, wait))
    thread.start()
    thread.join()
    assert far.heard == b"x"
    assert pty.is_as_it_was()


@pytest.mark.parametrize(
    ("pieces", "passed"),
    [
        ([b"ls\r"], b"ls\r"),
        ([b"a~."], b"a~."),
        ([b"~", b"~."], b"~."),
        ([b"~x"], b"~x"),
        ([b"~\r~", b"~"], b"~\r~"),
        ([b"cd ~\r"], b"cd ~\r"),
    ],
)
def test_what_is_typed_is_passed_on(pieces: Sequence[bytes], passed: bytes) -> None:
    escape = Escape()
    assert b"".join(map(escape, pieces)) == passed


@pytest.mark.parametrize(
    "pieces", [[b"~."], [b"~", b"."], [b"ls\r~."], [b"ls\n", b"~", b"."], [b"x\r~~\r~."], [b""]]
)
def test_the_escape_works_at_the_start_of_a_line(pieces: Sequence[bytes]) -> None:
    escape = Escape()
    with pytest.raises(KeyboardInterrupt):
        list(map(escape, pieces))
