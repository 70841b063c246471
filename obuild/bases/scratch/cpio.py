"""Archives as the kernel reads them for its initial RAM disk ("newc"), the same bytes for the same files.

https://docs.kernel.org/driver-api/early-userspace/buffer-format.html
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

#: What a file is, in its mode.
FOLDER, FILE = 0o40000, 0o100000


def archive(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Return an archive of files by path, each with its permission bits, and of the folders that they need.

    Everything belongs to root and has no time. A path that ends in a slash is an empty folder.
    """
    entries: dict[str, tuple[int, bytes]] = {}
    for name, (mode, data) in files.items():
        path = PurePosixPath(name.lstrip("/"))
        for folder in [*reversed(path.parents)][1:]:
            entries.setdefault(str(folder), (FOLDER | 0o755, b""))
        entries[str(path)] = ((FOLDER if name.endswith("/") else FILE) | mode, data)
    out = b"".join(_entry(number, name, *entry) for number, (name, entry) in enumerate(entries.items(), 1))
    return out + _entry(0, "TRAILER!!!", 0, b"")


def _entry(inode: int, name: str, mode: int, data: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
