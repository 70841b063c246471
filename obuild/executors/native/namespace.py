"""Namespaces for the mounts and the programs of one chain: when obuild ends, however it ends, all of them end."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from obuild.errors import MachineError
from obuild.host import process
from obuild.host.process import Arg, CancelScope

PROGRAMS = ("unshare", "nsenter", "mount", "umount")

#: From linux/sched.h and linux/mount.h.
_CLONE_FS, _CLONE_NEWNS, _MS_REMOUNT, _MS_SHARED = 0x200, 0x20000, 32, 1 << 20


class Namespace:
    """A mount and a PID namespace, held by the process `pid`. Nothing that is mounted here is seen outside."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._proc = Path(f"/proc/{pid}")

    def enter(self, argv: Sequence[Arg]) -> list[Arg]:
        """The command that runs `argv` inside."""
        namespaces = [f"--mount={self._proc}/ns/mnt", f"--pid={self._proc}/ns/pid_for_children"]
        return ["nsenter", *namespaces, "--", *argv]

    def run(self, argv: Sequence[Arg]) -> bytes:
        """As `process.run`, inside."""
        return process.run(self.enter(argv))

    def mount_memory(self, point: Path) -> None:
        """Mount a file system in memory, for root only. OSError if the kernel refuses."""
        self._call("mount", b"obuild", os.fsencode(point), b"tmpfs", 0, b"mode=700")

    def share(self, point: Path) -> None:
        """Share what is mounted at `point` later with the mount namespaces that are made from this one."""
        self._call("mount", None, os.fsencode(point), None, _MS_SHARED, None)

    def remount(self, point: Path, flags: int) -> None:
        """Change the flags of a file system, as mount(2) with MS_REMOUNT. OSError if the kernel refuses."""
        self._call("mount", None, os.fsencode(point), None, _MS_REMOUNT | flags, None)

    def unmount(self, point: Path) -> None:
        """Unmount a file system, as umount2(2). OSError if the kernel refuses."""
        self._call("umount2", os.fsencode(point), 0)

    def has_root(self) -> bool:
        """Whether its root is the root of its process. In a chroot it is not, and `enter` leaves the chroot.

        OSError if we may not enter it.
        """
        found: list[int] = []
        self._inside(lambda libc: found.append(os.open("/", os.O_PATH | os.O_CLOEXEC)))
        found.append(os.open(self._proc / "root", os.O_PATH | os.O_CLOEXEC))
        try:
            return len({_place(fd) for fd in found}) == 1
        finally:
            for fd in found:
                os.close(fd)

    def _call(self, name: str, *arguments: object) -> None:
        """Make a system call inside: each step needs some, and starting mount(8) takes longer than the call."""
        self._inside(lambda libc: getattr(libc, name)(*arguments))

    def _inside(self, call: Callable[[ctypes.CDLL], object]) -> None:
        """Make a call inside, which returns something true if it fails. OSError if it does.

        A thread may enter another mount namespace alone once it shares no current folder with others.
        """
        failed: list[int] = []

        def enter() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            with (self._proc / "ns/mnt").open("rb") as there:
                entered = not libc.unshare(_CLONE_FS) and not libc.setns(there.fileno(), _CLONE_NEWNS)
            if not entered or call(libc):
                failed.append(ctypes.get_errno())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failed:
            raise OSError(failed[0], os.strerror(failed[0]))

    def path(self, path: Path) -> Path:
        """Where we find what is at the absolute `path` inside."""
        return Path(f"{self._proc}/root{path}")


def _place(fd: int) -> tuple[str, int]:
    """The mount and the inode of an open folder; two mounts can have the same inode."""
    mount = Path(f"/proc/self/fdinfo/{fd}").read_text().partition("mnt_id:")[2].split()[0]
    return mount, os.fstat(fd).st_ino


@contextmanager
def opened(scope: CancelScope) -> Iterator[Namespace]:
    """Make the namespaces. When the block ends, every process in them is killed and everything is unmounted.

    Their first process waits for the end of a pipe that only we can write to. The kernel closes that if we are
    killed, ends a PID namespace with its first process, and a mount namespace with its last one.
    """
    stopped, stop = os.pipe()
    ready, started = os.pipe()
    try:
        with os.fdopen(ready, "rb") as answer, os.fdopen(started, "wb") as output:
            # SIGCHLD is ignored, so that the kernel reaps what nobody waits for.
            first = ["env", "--ignore-signal=CHLD", "sh", "-c", 'echo ready; exec cat "$0"', f"/dev/fd/{stopped}"]
            argv = ["unshare", "--mount", "--propagation=slave", "--pid", "--fork", "--mount-proc", "--", *first]
            with scope.spawned(argv, stderr=output, pass_fds=(stopped,)) as child:
                output.close()
                if answer.readline() != b"ready\n":
                    scope.check()
                    raise MachineError(
                        "no namespaces can be made here", hint="in a container: it needs --privileged"
                    )
                try:
                    yield Namespace(child.pid)
                finally:
                    os.close(stop)
                    stop = -1
                    child.wait()  # the kernel ends everything first
    finally:
        for fd in (stopped, stop):
            if fd >= 0:
                os.close(fd)
