"""SSH without a guest: marks in a stream, keys, and waiting for a server that begins to speak."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from obuild import ssh
from obuild.errors import MachineError, UsageError
from obuild.machine import Machine
from obuild.marks import MarkReader
from obuild.shape import Shape
from tests.fakes import FakeMachine

MARK = b"obuild-12345 "


def read(pieces: Sequence[bytes]) -> tuple[bytes, int | None]:
    """What a reader passes on of a stream that arrives in pieces, and the status it finds."""
    passed = bytearray()
    reader = MarkReader(MARK, passed.extend)
    for piece in pieces:
        reader.feed(piece)
    return bytes(passed), reader.status


@pytest.mark.parametrize(
    ("stream", "output", "status"),
    [
        (MARK + b"0\n", b"", 0),
        (b"text\n" + MARK + b"3\n", b"text\n", 3),
        (b"no newline" + MARK + b"255\n", b"no newline", 255),
        (b"obuild-obuild-12345" + MARK + b"0\n", b"obuild-obuild-12345", 0),
        (b"\0\xff\n" * 50 + MARK + b"1\nlater", b"\0\xff\n" * 50, 1),
        (MARK + b"garbage\n", b"", 255),
        (MARK + b"-1\n", b"", 255),
    ],
)
def test_all_before_the_mark_is_output_however_it_arrives(stream: bytes, output: bytes, status: int) -> None:
    end = stream.index(b"\n", stream.index(MARK)) + 1
    for cut in range(end):
        assert read([stream[:cut], stream[cut:]]) == (output, status)
    assert read([stream[at : at + 1] for at in range(end)]) == (output, status)


def test_output_is_passed_on_as_early_as_it_safely_can() -> None:
    assert read([b"hello", b" world obuild-1"]) == (b"hello world ", None)


def test_a_mark_without_an_end_does_not_wait_for_ever() -> None:
    assert read([MARK + b"not a number"])[1] == 255


def test_what_is_held_back_comes_out_at_the_end() -> None:
    passed = bytearray()
    reader = MarkReader(MARK, passed.extend)
    reader.feed(b"text obuild-")
    reader.flush()
    assert bytes(passed) == b"text obuild-"


def test_a_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "ssh" / "id_ed25519"
    public = ssh.make_key(path)
    private = path.read_bytes()
    assert public.startswith("ssh-ed25519 ")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert ssh.make_key(path) == public
    assert path.read_bytes() == private
    assert [found.name for found in path.parent.iterdir()] == ["id_ed25519"]


def test_processes_that_make_the_same_key_agree_on_it(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(ssh.make_key, [tmp_path / "key"] * 6))) == 1


def test_a_key_is_one_that_openssh_takes(tmp_path: Path) -> None:
    public = ssh.make_key(tmp_path / "key")
    said = subprocess.run(
        ["ssh-keygen", "-y", "-f", tmp_path / "key"], check=True, capture_output=True, text=True
    ).stdout
    assert said.split()[:2] == public.split()[:2]


def test_a_key_that_cannot_be_used_is_named(tmp_path: Path) -> None:
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
    """A TCP server whose connections are talked to in order; yields its port."""

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
    """What the connection says that `ssh` has waited for."""
    with ssh.wait_for_banner(cast(Machine, machine), time.monotonic() + seconds) as sock:
        return sock.recv(100)


@pytest.mark.parametrize("first", [hangs_up, says_something_else, says_nothing])
def test_a_server_is_tried_until_it_speaks_ssh(first: Talk) -> None:
    """One that says nothing is given up only if the guest itself has not accepted the connection."""
    with server(first, speaks) as port:
        assert wait(FakeMachine(port, Shape(), accepts=False)) == b"SSH-2.0-test\r\n"


def test_nothing_of_the_banner_is_lost() -> None:
    with server(speaks) as port:
        assert wait(FakeMachine(port, Shape())).startswith(b"SSH-2.0")


def test_a_guest_that_never_answers_is_given_up_with_advice() -> None:
    with server(says_nothing) as port, pytest.raises(MachineError, match="did not answer SSH") as caught:
        wait(FakeMachine(port, Shape(boot_time=7.0), accepts=False), 0.05)
    assert "within 7 s" in caught.value.message
    assert "--qemu-boot-time" in caught.value.hint


def test_a_guest_that_stops_while_it_boots_is_not_waited_for() -> None:
    with server(says_nothing) as port, pytest.raises(MachineError, match="it panicked"):
        wait(FakeMachine(port, Shape(), stopped="it panicked"))
