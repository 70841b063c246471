"""Run a command where the kernel runs programs for another architecture, by qemu-user: `-m … ARCH COMMAND…`.

binfmt_misc belongs to a user namespace since Linux 6.7. So this host stays as it is, and so do the other tests.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_BINFMT = Path("/proc/sys/fs/binfmt_misc")


def program(arch: str) -> Path:
    """What says how the kernel recognizes programs for `arch`: a file of qemu-user-static."""
    return Path(f"/usr/lib/binfmt.d/qemu-{arch}.conf")


def run(arch: str, command: list[str]) -> int:
    """Run a command as root of a new user namespace, in which all ids are the same; returns its status."""
    ours, theirs = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_NEW_USER | _NEW_MOUNTS):
            raise OSError(ctypes.get_errno(), "unshare")
        os.write(theirs[1], b"x")
        os.read(ours[0], 1)  # we are nobody before
        if libc.mount(b"binfmt_misc", str(_BINFMT).encode(), b"binfmt_misc", 0, None):
            raise OSError(ctypes.get_errno(), "mount")
        line = next(line for line in program(arch).read_text().splitlines() if line.startswith(":"))
        with (_BINFMT / "register").open("wb", buffering=0) as register:
            register.write(line.encode())
        os.execvp(command[0], command)
    os.read(theirs[0], 1)
    for ids in ("uid_map", "gid_map"):
        Path(f"/proc/{child}/{ids}").write_text("0 0 4294967295")
    os.write(ours[1], b"x")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
