"""SSH without a guest: keys, and waiting for a server to speak."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import tempfile
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

import pytest

from obuild.errors import MachineError, UsageError
from obuild.executors.qemu import ssh
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import Shape
from obuild.host import terminal
from obuild.host.terminal import Terminal
from tests.support.fakes import FakeMachine
from tests.support.ssh_server import Handler, pipe, serve


def test_a_key_is_made_once_and_readable_only_by_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "ssh" / "id_ed25519"
    public = ssh.make_key(path)
    private = path.read_bytes()
    assert public.startswith("ssh-ed25519 ")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert ssh.make_key(path) == public
    assert path.read_bytes() == private
    assert [found.name for found in path.parent.iterdir()] == ["id_ed25519"]


def test_processes_that_make_a_key_at_once_agree_on_it(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(ssh.make_key, [tmp_path / "key"] * 6))) == 1


def test_openssh_accepts_the_key(tmp_path: Path) -> None:
    public = ssh.make_key(tmp_path / "key")
    said = subprocess.run(
        ["ssh-keygen", "-y", "-f", tmp_path / "key"], check=True, capture_output=True, text=True
    ).stdout
    assert said.split()[:2] == public.split()[:2]


def test_an_unusable_key_is_named(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(locked)]
    subprocess.run(argv, check=True)
    (tmp_path / "text").write_text("no key")
    for path in (locked, tmp_path / "text", tmp_path / "none", tmp_path, locked.with_suffix(".pub")):
        with pytest.raises(UsageError, match="cannot use the SSH key") as caught:
            ssh.load_key(path)
        assert str(path) in caught.value.message


Talk = Callable[[socket.socket], object]


@contextlib.contextmanager
def server(*talks: Talk) -> Iterator[int]:
    """A TCP server that handles each connection with the next function; yields its port."""

    def serve() -> None:
        for talk in talks:
            with contextlib.suppress(OSError):
                client, _ = listener.accept()
                clients.append(client)
                talk(client)

    clients: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for client in clients:
                client.close()


def speaks(client: socket.socket) -> None:
    client.sendall(b"SSH-2.0-test\r\n")


def hangs_up(client: socket.socket) -> None:
    client.close()


def says_nothing(client: socket.socket) -> None:
    pass


def says_something_else(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "ACCEPT_TIMEOUT", 0.01)
    monkeypatch.setattr(ssh, "RETRY_PAUSE", 0.0)


def wait(machine: FakeMachine, seconds: float = 60.0) -> bytes:
    """Return the first line of the connection that `ssh` returned."""
    with ssh.wait_for_banner(cast(Machine, machine), time.monotonic() + seconds) as sock:
        return sock.recv(100)


@pytest.mark.parametrize("first", [hangs_up, says_something_else, says_nothing])
def test_a_server_is_tried_until_it_speaks_ssh(first: Talk) -> None:
    """A silent connection is given up only if the guest itself has not accepted it."""
    with server(first, speaks) as port:
        assert wait(FakeMachine(port, Shape(), accepts=False)) == b"SSH-2.0-test\r\n"


def test_the_banner_can_still_be_read() -> None:
    with server(speaks) as port:
        assert wait(FakeMachine(port, Shape())).startswith(b"SSH-2.0")


def test_a_guest_that_never_answers_is_an_error_with_a_hint() -> None:
    with server(says_nothing) as port, pytest.raises(MachineError, match="did not answer SSH") as caught:
        wait(FakeMachine(port, Shape(boot_time=7.0), accepts=False), 0.05)
    assert "within 7 s" in caught.value.message
    assert "--qemu-boot-time" in caught.value.hint


def test_a_guest_that_stops_while_booting_ends_the_wait() -> None:
    with server(says_nothing) as port, pytest.raises(MachineError, match="it panicked"):
        wait(FakeMachine(port, Shape(), stopped="it panicked"))


# -- a program at our terminal


@contextlib.contextmanager
def piped(typed: bytes) -> Iterator[tuple[Terminal, IO[bytes], IO[bytes]]]:
    """Files instead of a terminal: the first is everything that is typed."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        stdin.write(typed)
        stdin.seek(0)
        yield Terminal(stdin.fileno(), out.fileno(), errors.fileno()), out, errors


@pytest.fixture
def key(tmp_path: Path) -> Path:
    ssh.make_key(tmp_path / "key")
    return tmp_path / "key"


def interact(handler: Handler, at: Terminal, key: Path) -> int:
    with serve(handler) as port:
        machine = cast(Machine, FakeMachine(port, Shape()))
        with ssh.connect(machine, login="root", key=key) as connection:
            return connection.interact("the command", at)


def contents(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def test_a_shell_runs_what_is_piped_into_it(key: Path) -> None:
    def shell(command: str, stdin: IO[bytes], stdout: IO[bytes]) -> int:
        assert command == "the command"
        return pipe(["sh"], stdin, stdout)

    with piped(b"echo out; echo err >&2; exit 7") as (at, out, errors):
        assert interact(shell, at, key) == 7
        assert (contents(out), contents(errors)) == (b"out\n", b"err\n")


def test_more_can_be_piped_than_the_guest_reads_at_once(key: Path) -> None:
    typed = os.urandom(1 << 10) * (5 << 10)
    with piped(typed) as (at, out, _):
        assert interact(lambda command, stdin, stdout: pipe(["cat"], stdin, stdout), at, key) == 0
        assert contents(out) == typed


def test_a_program_need_not_read_all_its_input(key: Path) -> None:
    def deaf(command: str, stdin: IO[bytes], stdout: IO[bytes]) -> int:
        stdin.read(1)  # before that, the client may not know yet that the command has started
        stdout.write(b"done")
        return 3

    with piped(bytes(5 << 20)) as (at, out, _):
        assert interact(deaf, at, key) == 3
        assert contents(out) == b"done"


def test_a_program_that_ends_without_a_status_gives_255(key: Path) -> None:
    def killed(command: str, stdin: IO[bytes], stdout: IO[bytes]) -> int:
        stdin.read(1)
        stdout.channel.close()  # type: ignore[attr-defined]  # paramiko's own file
        return 0

    with piped(b"x") as (at, _, _):
        assert interact(killed, at, key) == 255


def test_a_program_may_close_its_output_and_continue(key: Path) -> None:
    def quiet(command: str, stdin: IO[bytes], stdout: IO[bytes]) -> int:
        channel = stdout.channel  # type: ignore[attr-defined]  # paramiko's own file
        channel.shutdown_write()
        stdin.read()
        return 4

    with piped(b"typed") as (at, _, _):
        assert interact(quiet, at, key) == 4


def test_background_processes_do_not_delay_the_end(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "IDLE", 0.05)
    gone = threading.Event()

    def leaves(command: str, stdin: IO[bytes], stdout: IO[bytes]) -> int:
        stdout.write(b"out")
        stdout.channel.send_exit_status(5)  # type: ignore[attr-defined]  # paramiko's own file
        gone.wait(60)
        return 5

    with piped(b"") as (at, out, _):
        assert interact(leaves, at, key) == 5
        gone.set()
        assert contents(out) == b"out"


def test_a_guest_that_hangs_up_is_an_error(key: Path) -> None:
    def hangs_up(command: str, stdin: IO[bytes], stdout: IO[bytes]) -> int:
        stdin.read(1)
        stdout.channel.transport.close()  # type: ignore[attr-defined]  # paramiko's own file
        return 0

    with piped(b"x") as (at, _, _), pytest.raises(MachineError, match="closed the SSH connection"):
        interact(hangs_up, at, key)


class Typed:
    """A guest's program at a terminal: a `w` resizes the window, and `exit` ends it."""

    def __init__(self) -> None:
        self.sizes: list[tuple[str, int, int]] = []
        self.changed = threading.Event()

    def terminal(self, name: str, columns: int, lines: int) -> None:
        self.sizes.append((name, columns, lines))
        if len(self.sizes) > 1:
            self.changed.set()

    def __call__(self, command: str, stdin: IO[bytes], stdout: IO[bytes]) -> int:
        data = b""
        while not data.endswith(b"exit\r"):
            byte = stdin.read(1)
            if byte == b"w":  # resize the window
                os.kill(os.getpid(), signal.SIGWINCH)
                assert self.changed.wait(60)
            data += byte
        stdout.write(b"got " + data)
        return 6


@pytest.fixture
def pty() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal: the typist's, and the program's."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (33, 101))
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_at_a_terminal_the_program_gets_one_too(
    key: Path, pty: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty
    before = termios.tcgetattr(theirs)
    set_raw = tty.setraw

    def and_type(fd: int, when: int) -> None:
        set_raw(fd, when)
        os.write(ours, b"\x03\x04aw\rexit\r")

    monkeypatch.setattr(tty, "setraw", and_type)
    monkeypatch.setenv("TERM", "vt52")
    program = Typed()
    assert interact(program, Terminal(theirs, theirs, theirs), key) == 6
    assert program.sizes == [("vt52", 101, 33), ("", 101, 33)]
    assert os.read(ours, 65536) == b"got \x03\x04aw\rexit\r"
    assert termios.tcgetattr(theirs) == before


def test_a_guest_without_terminals_is_an_error(key: Path, pty: tuple[int, int]) -> None:
    at = Terminal(pty[1], pty[1], pty[1])
    with pytest.raises(MachineError, match="no terminal") as caught:
        interact(lambda command, stdin, stdout: 0, at, key)
    assert "echo" in caught.value.hint
