"""The one door to other programs: run one to its end, or spawn one that never outlives us.

Every command is logged as one line that can be pasted into a shell. Programs run in a session of
their own, so a Ctrl-C in the terminal reaches obuild alone, which then ends them in order.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from obuild.errors import Cancelled, ProcessError, UsageError
from obuild.host.tail import KEPT

#: Debian's package for each program we call, for the message when it is missing.
PACKAGES = {
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-riscv64": "qemu-system-misc",
    "qemu-system-s390x": "qemu-system-misc",
    "qemu-system-ppc64": "qemu-system-ppc",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "mke2fs": "e2fsprogs",
    "sfdisk": "fdisk",
    "grub-mkimage": "grub-common",
    "setpriv": "util-linux",
    "ssh-keygen": "openssh-client",
    "depmod": "kmod",
    "modprobe": "kmod",
    "xz": "xz-utils",
    "gpgv": "gpgv",
}

Arg = str | Path


def require(program: str) -> str:
    """The path of `program`; a UsageError that says what to install if it is not on PATH.

    System folders are searched too: Debian keeps mke2fs and sfdisk off a plain user's PATH.
    """
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    found = shutil.which(program, path=path)
    if found:
        return found
    package = PACKAGES.get(program, program)
    raise UsageError(f"{program} is not installed, or not on PATH", hint=f"apt install {package}")


def require_file(path: Path, package: str) -> None:
    """A UsageError that says to install `package` if what it brings is not there."""
    if not path.exists():
        raise UsageError(f"{path} is missing", hint=f"apt install {package}")


def run(
    argv: Sequence[Arg],
    *,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    ok: tuple[int, ...] = (0,),
    cwd: Path | None = None,
) -> bytes:
    """Run a program to its end and return its stdout; ProcessError unless it exits with one of `ok`.

    `env` is added to our own environment. A program that is still running when we are interrupted
    is killed before the interrupt goes on.
    """
    command = [require(str(argv[0])), *map(str, argv[1:])]
    _tell(argv)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **env} if env else None,
        cwd=cwd,
        start_new_session=True,
    ) as child:
        try:
            out, err = child.communicate(input)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)  # its helpers too: it leads a session of its own
            raise
    if child.returncode not in ok:
        raise ProcessError(f"{shlex.join(map(str, argv))} {ending(child.returncode)}{_quote(err)}")
    return out


def spawn(
    argv: Sequence[Arg], *, stderr: IO[bytes], pass_fds: Sequence[int] = (), shown: Sequence[Arg] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program that the kernel kills when the calling thread ends, however that comes about.

    The caller owns the process: it must wait for it. The calling thread must live as long as the
    program is wanted (the kernel's parent-death signal follows the thread, not the process). `shown` is
    what is logged, if `argv` by itself could not be run again.
    """
    command = [require("setpriv"), "--pdeathsig", "KILL", "--", require(str(argv[0])), *map(str, argv[1:])]
    _tell(shown or argv)
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stderr,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
    )


class CancelScope:
    """The programs that one build has running, and whether it has been told to stop.

    Any thread may cancel it, at any time and for good: its programs are killed, and it starts no more.
    """

    def __init__(self) -> None:
        # Threads share these without a lock: each change is one operation of a set or of an attribute.
        self._children: set[subprocess.Popen[bytes]] = set()
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called. What fails from then on may fail because of that."""
        return self._cancelled

    def cancel(self) -> None:
        self._cancelled = True
        for child in tuple(self._children):
            child.kill()

    def check(self) -> None:
        """Cancelled if `cancel` was called."""
        if self._cancelled:
            raise Cancelled("the build was cancelled")

    @contextmanager
    def spawned(
        self,
        argv: Sequence[Arg],
        *,
        stderr: IO[bytes],
        pass_fds: Sequence[int] = (),
        shown: Sequence[Arg] | None = None,
    ) -> Iterator[subprocess.Popen[bytes]]:
        """As `spawn`; on the way out the program is killed, if it still runs, and waited for."""
        self.check()
        child = spawn(argv, stderr=stderr, pass_fds=pass_fds, shown=shown)
        self._children.add(child)
        try:
            if self._cancelled:  # perhaps `cancel` looked just before
                child.kill()
            yield child
        finally:
            self._children.discard(child)
            if child.poll() is None:
                child.kill()
            child.wait()


def terminal_name() -> str:
    """What our environment calls the terminal that we were started in."""
    return os.environ.get("TERM") or "dumb"


def ending(returncode: int) -> str:
    """How a program ended, in words."""
    return f"was killed by signal {-returncode}" if returncode < 0 else f"failed with exit status {returncode}"


def _tell(argv: Sequence[Arg]) -> None:
    import logging  # late: a cached build starts no program

    logging.getLogger("obuild").info("Exec %s", shlex.join(map(str, argv)))


def _quote(stderr: bytes) -> str:
    text = stderr.decode(errors="replace").strip()[-KEPT:]
    return f":\n{text}" if text else ""
