"""What native steps leave on this host."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path

#: How long the kernel may take to end and unmount everything of a killed build, in seconds.
END = 120.0


def traces() -> set[str]:
    """What builds may leave on the host: programs, mounts and loop devices."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "-native/" in command:
                found.add(command)
    mounts = Path("/proc/mounts").read_text() + subprocess.check_output(["losetup", "-a"], text=True)
    # A disk in another mount namespace has no path here that tells more.
    ours = ("(/)", "(/disk)")
    return found | {line for line in mounts.splitlines() if "-native/" in line or line.endswith(ours)}


def wait_for_nothing() -> None:
    """Wait until nothing is left of the builds that have ended or were killed."""
    deadline = time.monotonic() + END
    while left := traces():
        assert time.monotonic() < deadline, left
        time.sleep(0.01)  # the kernel tells nobody
