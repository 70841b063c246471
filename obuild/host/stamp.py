"""Is it still the same? Values that change when a file, a folder or the boot of the host is another one."""

from __future__ import annotations

from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Stamp = tuple[int, int, int]


def of(path: Path) -> Stamp:
    """Changes when a file is replaced or written to: inode, size, time of the last change in ns.

    OSError if there is no such file.
    """
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def of_folder(path: Path) -> Stamp:
    """Changes when the names in a folder do, in a later tick of the clock: inode, mtime and ctime in ns.

    OSError if there is no such folder.
    """
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def boot_id() -> str:
    """Another one each time the host boots."""
    return BOOT_ID.read_text().strip()
