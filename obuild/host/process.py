"""The only module that starts other programs: it runs one to its end, or spawns one that never outlives us.

Every command is logged as one line that can be pasted into a shell. Programs run in sessions of
their own, so Ctrl-C in the terminal reaches obuild alone, which then ends them in order.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from obuild.errors import Cancelled, ProcessError, UsageError
from obuild.host.tail import KEPT

#: The Debian package of each program that we call, for the message when it is missing.
PACKAGES = {
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-storage-daemon": "qemu-system-common",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-riscv64": "qemu-system-misc",
    "qemu-system-s390x": "qemu-system-misc",
    "qemu-system-ppc64": "qemu-system-ppc",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "mke2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "sfdisk": "fdisk",
    "grub-mkimage": "grub-common",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ssh-keygen": "openssh-client",
    "sftp": "openssh-client",
    "docker-credential-ecr-login": "amazon-ecr-credential-helper",
    "docker-credential-pass": "golang-docker-credential-helpers",
    "docker-credential-secretservice": "golang-docker-credential-helpers",
    "depmod": "kmod",
    "modprobe": "kmod",
    "xz": "xz-utils",
    "dumpe2fs": "e2fsprogs",
    "gpgv": "gpgv",
    "mformat": "mtools",
    "mmd": "mtools",
    "mksquashfs": "squashfs-tools",
    "umount": "mount",
    "mcopy": "mtools",
    "xorriso": "xorriso",
    "busybox": "busybox-static",
    "zstd": "zstd",
    "swtpm": "swtpm",
    "systemctl": "systemd",
}

Arg = str | Path

#: How often `run` reports progress, in seconds.
_PROGRESS_PERIOD = 0.25


def require(program: str) -> str:
    """The path of `program`. UsageError, with the package to install, if it is not on PATH.

    System folders are searched too: Debian keeps mke2fs and sfdisk off a plain user's PATH.
    """
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    found = shutil.which(program, path=path)
    if found:
        return found
    package = PACKAGES.get(program, program)
    raise UsageError(f"{program} is not installed, or not on PATH", hint=f"apt install {package}")


def require_file(path: Path, package: str) -> None:
    """UsageError, with the `package` to install, if `path` is missing."""
    if not path.exists():
        raise UsageError(f"{path} is missing", hint=f"apt install {package}")


def run(
    argv: Sequence[Arg],
    *,
    input: bytes | None = None,
    stdin: Path = Path(os.devnull),
    env: Mapping[str, str] | None = None,
    ok: tuple[int, ...] = (0,),
    cwd: Path | None = None,
    progress: Callable[[int], object] | None = None,
) -> bytes:
    """Run a program to its end and return its stdout; ProcessError unless it exits with one of `ok`.

    It reads `input`, or else the file `stdin`. `env` is added to our own environment. A program that is
    still running when we are interrupted is killed before the interrupt goes on. `progress` is called from time
    to time with the number of bytes that the program has read so far, from files, too.
    """
    with (
        stdin.open("rb") as read,
        piped(argv, stdin=read if input is None else subprocess.PIPE, env=env, cwd=cwd) as child,
    ):
        out, err = _output(child, input, progress)
    if child.returncode not in ok:
        raise ProcessError(f"{shlex.join(map(str, argv))} {ending(child.returncode)}{_quote(err)}")
    return out


def spawn(
    argv: Sequence[Arg], *, stderr: IO[bytes], pass_fds: Sequence[int] = (), shown: Sequence[Arg] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program that the kernel kills when the calling thread ends, however it ends.

    The caller owns the process and must wait for it. The calling thread must live as long as the
    program is needed (the kernel's parent-death signal follows the thread, not the process). `shown` is
    logged in place of `argv` if that could not be run again by itself.
    """
    command = [require("setpriv"), "--pdeathsig", "KILL", "--", *_command(argv, shown)]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stderr,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def _output(
    child: subprocess.Popen[bytes], input: bytes | None, progress: Callable[[int], object] | None
) -> tuple[bytes, bytes]:
    """What a program prints to stdout and stderr until it ends."""
    while progress:
        try:
            return child.communicate(input, timeout=_PROGRESS_PERIOD)
        except subprocess.TimeoutExpired:
            progress(_bytes_read(child.pid))
            input = None  # it has been taken
    return child.communicate(input)


def _bytes_read(pid: int) -> int:
    """How much a program has read, as proc(5) counts it in `rchar`; 0 if that cannot be seen."""
    try:
        return int(Path(f"/proc/{pid}/io").read_text().split()[1])
    except OSError:
        return 0


@contextmanager
def piped(
    argv: Sequence[Arg],
    *,
    stdin: IO[bytes] | int,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program whose stdout and stderr are pipes. An exception in the block kills it, then goes on.

    `env` is added to our own environment.
    """
    command = _command(argv)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdin=stdin,
        stdout=pipe,
        stderr=pipe,
        env={**os.environ, **env} if env else None,
        cwd=cwd,
        start_new_session=True,
    ) as child:
        try:
            yield child
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)  # its helpers too: it leads a session of its own
            raise


def foreground(argv: Sequence[Arg]) -> int:
    """Run a program at our own terminal to its end. Return its exit status, or 255 if a signal ended it.

    The terminal's settings are restored afterwards, whatever happens.
    """
    import termios  # late: seldom needed

    command = _command(argv)
    settings = termios.tcgetattr(0) if os.isatty(0) else None
    try:
        with subprocess.Popen(command) as child:
            try:
                status = child.wait()
            except BaseException:
                child.kill()
                raise
    finally:
        if settings is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, settings)
    return status if status >= 0 else 255


class CancelScope:
    """The running programs of one build, and whether it was cancelled.

    Any thread may cancel it at any time. That is final: its programs are killed, and it starts no more.
    """

    def __init__(self) -> None:
        # Threads share these without a lock: each change is one operation of a set or of an attribute.
        self._children: set[subprocess.Popen[bytes]] = set()
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called. Anything that fails after that may fail because of it."""
        return self._cancelled

    def cancel(self) -> None:
        self._cancelled = True
        for child in tuple(self._children):
            child.kill()

    def check(self) -> None:
        """Raise Cancelled if `cancel` was called."""
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
        """As `spawn`; when the block ends, the program is killed if it still runs, and waited for."""
        self.check()
        child = spawn(argv, stderr=stderr, pass_fds=pass_fds, shown=shown)
        self._children.add(child)
        try:
            if self._cancelled:  # `cancel` may have run just before it was added
                child.kill()
            yield child
        finally:
            self._children.discard(child)
            if child.poll() is None:
                child.kill()
            child.wait()


def terminal_name() -> str:
    """The name of our terminal, from the environment."""
    return os.environ.get("TERM") or "dumb"


def ending(returncode: int) -> str:
    """How a program ended, in words."""
    return f"was killed by signal {-returncode}" if returncode < 0 else f"failed with exit status {returncode}"


def _command(argv: Sequence[Arg], shown: Sequence[Arg] | None = None) -> list[str]:
    """The command line of a program, which is logged, or `shown` in its place. UsageError as for `require`."""
    import logging  # late: a cached build starts no program

    command = [require(str(argv[0])), *map(str, argv[1:])]
    logging.getLogger("obuild").info("Exec %s", shlex.join(map(str, shown or argv)))
    return command


def _quote(stderr: bytes) -> str:
    text = stderr.decode(errors="replace").strip()[-KEPT:]
    return f":\n{text}" if text else ""
