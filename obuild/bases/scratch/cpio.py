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
    return out + TRAILER


def head(name: str, mode: int, size: int, inode: int = 1) -> bytes:
    """What precedes the data of an entry. Zeros follow the data, up to a multiple of four bytes."""
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(encoded), 0)
    made = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return made + bytes(-len(made) % 4)


def _entry(inode: int, name: str, mode: int, data: bytes) -> bytes:
    return head(name, mode, len(data), inode) + data + bytes(-len(data) % 4)


#: What ends an archive.
TRAILER = head("TRAILER!!!", 0, 0, 0)
