"""Values that change when a file or a folder changes, or the host boots: whether something is still the same."""

from __future__ import annotations

from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Stamp = tuple[int, int, int]


def of(path: Path) -> Stamp:
    """A value that changes when a file is replaced or written to: inode, size, mtime in ns.

    OSError if there is no such file.
    """
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def of_folder(path: Path) -> Stamp:
    """A value that changes when the names in a folder do, if the clock has ticked: inode, mtime and ctime in ns.

    OSError if there is no such folder.
    """
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def boot_id() -> str:
    """A value that is new each time the host boots."""
    return BOOT_ID.read_text().strip()
