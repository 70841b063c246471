"""How much memory this host has to spare, and how we give it back."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

_HOST = Path("/proc/meminfo")

#: Where a container sees its own limit and use: https://docs.kernel.org/admin-guide/cgroup-v2.html
_CGROUP = Path("/sys/fs/cgroup")

#: From this size on, in bytes, a block is mapped on its own; and the name of that in mallopt.
_LARGE, _MMAP_THRESHOLD = 1 << 20, -3


def available() -> int:
    """The bytes that programs can use before the host swaps, or our cgroup is at its limit; 0 if unknown."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        line = next(line for line in _HOST.read_text().splitlines() if line.startswith("MemAvailable:"))
        found.append(int(line.split()[1]) << 10)
    with suppress(OSError, ValueError):  # there is no file in the root cgroup, or it says "max"
        limit, used = (int((_CGROUP / f"memory.{each}").read_text()) for each in ("max", "current"))
        found.append(max(0, limit - used))
    return min(found, default=0)


def give_back() -> None:
    """Return large blocks to the host as soon as they are freed: for programs with threads that hold many.

    glibc keeps up to 32 MiB of such blocks in each of its arenas: man 3 mallopt
    """
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)
