"""How much memory this host has to spare."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_HOST = Path("/proc/meminfo")

#: Where a container sees its own limit and use: https://docs.kernel.org/admin-guide/cgroup-v2.html
_CGROUP = Path("/sys/fs/cgroup")


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
