"""An SSH server in a thread that acts as a guest: anybody may log in, and every command goes to a handler."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

import paramiko
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED

#: Runs a command line: its stdin to read, its output to write; returns its exit status.
Handler = Callable[[str, IO[bytes], IO[bytes]], int]


class Server(paramiko.ServerInterface):
    def __init__(self, handler: Handler) -> None:
        self.handler = handler

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_pty_request(
        self, channel: paramiko.Channel, term: bytes, width: int, height: int, *rest: object
    ) -> bool:
        """A handler that has a method `terminal` has terminals."""
        return self._tell(term.decode(), width, height)

    def check_channel_window_change_request(
        self, channel: paramiko.Channel, width: int, height: int, *rest: object
    ) -> bool:
        return self._tell("", width, height)

    def _tell(self, term: str, width: int, height: int) -> bool:
        terminal = getattr(self.handler, "terminal", None)
        if terminal:
            terminal(term, width, height)
        return terminal is not None

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        text = command.decode("utf-8", "surrogateescape")
        threading.Thread(target=self._run, args=(channel, text), daemon=True).start()
        return True

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        threading.Thread(target=self._run, args=(channel, name), daemon=True).start()
        return True

    def _run(self, channel: paramiko.Channel, command: str) -> None:
        status = 255
        try:
            with channel.makefile("rb") as stdin, channel.makefile("wb", 0) as stdout:
                status = self.handler(command, cast(IO[bytes], stdin), cast(IO[bytes], stdout))
        except Exception as error:
            with suppress(OSError, EOFError):  # the client has gone, which is allowed
                channel.sendall(f"the test's server: {error!r}".encode())
        with suppress(OSError, EOFError):
            channel.send_exit_status(status)
            channel.shutdown_write()
            channel.close()


@contextmanager
def serve(handler: Handler) -> Iterator[int]:
    """Serve one connection; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        transports: list[paramiko.Transport] = []

        def accept() -> None:
            client, _ = listener.accept()
            transports.append(paramiko.Transport(client))
            transports[0].add_server_key(paramiko.ECDSAKey.generate())
            with suppress(paramiko.SSHException, EOFError, OSError):  # a client may leave at once
                transports[0].start_server(server=Server(handler))

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            thread.join()
            for transport in transports:
                transport.close()


def pipe(argv: Sequence[str | Path], stdin: IO[bytes], stdout: IO[bytes], **options: object) -> int:
    """Run a program connected to both streams, passing bytes on as they come; returns its exit status."""
    child = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, **options
    )  # type: ignore[call-overload]
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None

    def complain() -> None:
        with suppress(OSError, EOFError):  # the client has gone, which is allowed
            while data := child.stderr.read(65536):
                stdout.channel.sendall_stderr(data)  # type: ignore[attr-defined]  # paramiko's own file

    def feed() -> None:
        with suppress(OSError), child.stdin:  # the program may end before it has read all
            while data := stdin.channel.recv(65536):  # type: ignore[attr-defined]  # paramiko's own file
                child.stdin.write(data)

    threading.Thread(target=feed, daemon=True).start()
    complaining = threading.Thread(target=complain)
    complaining.start()
    while data := child.stdout.read(65536):
        stdout.write(data)
    complaining.join()
    child.stdout.close()
    child.stderr.close()
    return int(child.wait())


class Unix:
    """Runs commands as root on this host, in a mount namespace of their own, with our programs first in PATH."""

    def __init__(self, programs: Path) -> None:
        self.path = f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin"
        self.keeper = subprocess.Popen(["unshare", "--mount", "sh", "-c", "echo; exec sleep 600"], stdout=-1)
        assert self.keeper.stdout is not None
        self.keeper.stdout.readline()
        self.seen: list[str] = []

    def __call__(self, command: str, stdin: IO[bytes], stdout: IO[bytes]) -> int:
        self.seen.append(command)
        namespace = f"--mount=/proc/{self.keeper.pid}/ns/mnt"
        return pipe(["nsenter", namespace, "sh", "-c", command], stdin, stdout, env={"PATH": self.path})

    def close(self) -> None:
        self.keeper.kill()
        self.keeper.communicate()


#: Programs of the BSDs, made of this host's, as far as our scripts use them.
BSD_PROGRAMS = {
    "chroot": """[ "$1 $3 $5 $7" = "-u -g -G /" ] || exit 99; uid=$2 gid=$4 groups=$6; shift 7; cd /
                 exec setpriv --reuid "$uid" --regid "$gid" --groups "$groups" -- "$@" """,
    "tar": 'exec bsdtar "$@"',
    "gtar": f'exec {shutil.which("tar")} "$@"',
    "sudo": '[ "$1" = -n ] && shift && exec "$@"',
    "doas": '[ "$1" = -n ] && shift && exec "$@"',
    "mount_nullfs": '[ $# = 2 ] && exec mount --bind "$1" "$2"',
    "mount_mfs": '[ "$1 $3 $5" = "-o -s swap" ] && exec mount -t tmpfs -o "$2" swap "$6"',
}


def bsd_programs(folder: Path) -> Path:
    """A folder with BSD_PROGRAMS."""
    folder.mkdir()
    for name, text in BSD_PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def unquoted(expression: str) -> str:
    """The value of a literal of quoting.literal, if it is a plain one."""
    found = re.fullmatch(r"'((?:[^']|'')*)'", expression)
    assert found, expression
    return found[1].replace("''", "'")
