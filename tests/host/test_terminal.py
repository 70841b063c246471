"""Our end of a shell: what is typed goes, what is said comes, and the terminal is afterwards what it was."""

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
    """The far end: hears what is typed, does `act` with it, and has ended when it has said so."""

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
    """Both ends of a terminal, and what the one that is typed at was like when nobody had touched it."""

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


def test_pipes_are_carried_both_ways_to_their_ends() -> None:
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


def test_a_far_end_that_takes_little_gets_all_and_is_heard_meanwhile() -> None:
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


def test_every_key_is_the_guests_and_nothing_is_echoed_here(pty: Pty, types: Types) -> None:
    keys = b"\x03\x04\x1a\x1c\x11\x13\r\n\xff"
    types(keys)

    def act(far: Far) -> None:
        if far.heard == keys:
            far.say(b"heard\n")
            far.end()

    pty.at.join(Far(act), wait)
    assert os.read(pty.ours, 100) == b"heard\n"  # and no CR: what the guest's terminal makes of it is enough
    assert pty.is_as_it_was()


def fails(far: Far) -> None:
    raise MachineError("the guest panicked")


def hang_up(far: Far) -> None:
    os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.parametrize(("act", "error"), [(fails, MachineError), (hang_up, KeyboardInterrupt)])
def test_a_terminal_is_what_it_was_whatever_happens(
    pty: Pty, types: Types, act: Callable[[Far], object], error: type[BaseException]
) -> None:
    types(b"x")
    handlers = [signal.getsignal(number) for number in (signal.SIGWINCH, signal.SIGHUP)]
    with pytest.raises(error):
        pty.at.join(Far(act), wait)
    assert pty.is_as_it_was()
    assert [signal.getsignal(number) for number in (signal.SIGWINCH, signal.SIGHUP)] == handlers


def test_the_size_of_the_window_is_followed(pty: Pty, types: Types) -> None:
    def act(far: Far) -> None:
        termios.tcsetwinsize(pty.ours, (44, 55))
        os.kill(os.getpid(), signal.SIGWINCH)

    types(b"x")
    far = Far(act)
    assert pty.at.size() == (101, 33)
    pty.at.join(far, wait)
    assert far.sizes == [(55, 44)]


def test_a_window_without_a_size_has_a_usual_one(pty: Pty) -> None:
    termios.tcsetwinsize(pty.ours, (0, 0))
    assert pty.at.size() == (80, 24)
    assert Terminal(pty.at.stdin).typed
    with open(os.devnull) as null:  # noqa: PTH123
        assert Terminal(null.fileno()).size() == (80, 24)
        assert not Terminal(null.fileno()).typed


def test_a_terminal_that_goes_away_ends_it(pty: Pty, types: Types) -> None:
    def close(far: Far) -> None:
        os.dup2(far.ring[0], pty.ours)

    types(b"x")
    with pytest.raises(KeyboardInterrupt):
        pty.at.join(Far(close), wait)


def test_a_thread_has_no_signals_and_can_do_without(pty: Pty, types: Types) -> None:
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
def test_leaving_is_typed_at_the_start_of_a_line(pieces: Sequence[bytes]) -> None:
    escape = Escape()
    with pytest.raises(KeyboardInterrupt):
        list(map(escape, pieces))
