"""The state of a folder, to be compared with a later one."""

from __future__ import annotations

import stat
from pathlib import Path


def looks(root: Path) -> dict[str, tuple[int, int, bytes | str]]:
    """Everything below a folder: kind and mode, time of change, content."""
    found: dict[str, tuple[int, int, bytes | str]] = {}
    for path in sorted([root, *root.rglob("*")]):
        status = path.lstat()
        content: bytes | str = ""
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = str(path.readlink())
        found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, content)
    return found
