"""A folder of this host as a file system: a mounted one, or what a program has unpacked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from obuild.host import sparse
from obuild.host.trees.nodes import Node, encode, join

_CHUNK = 1 << 20


class Folder:
    """What is in the folder `top`. With `owner` and `mode`, all nodes have these: the source knows none.

    Nobody else may change it meanwhile.
    """

    def __init__(self, top: Path, *, owner: tuple[int, int] | None = None, mode: int | None = None) -> None:
        self._top, self._owner, self._mode = top, owner, mode

    def root(self) -> Node:
        """See `FileSystem.root`."""
        return self._node("")

    def children(self, folder: Node) -> list[Node]:
        """See `FileSystem.children`."""
        names = sorted(os.listdir(self._path(folder)), key=encode)
        return [self._node(join(folder.path, name)) for name in names]

    def target(self, link: Node) -> str:
        """See `FileSystem.target`."""
        return os.readlink(self._path(link))  # noqa: PTH115 - a Path would tidy it up

    def xattrs(self, node: Node) -> dict[str, bytes]:
        """See `FileSystem.xattrs`."""
        path = self._path(node)
        names = sorted(os.listxattr(path, follow_symlinks=False))
        return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}

    def pieces(self, file: Node) -> Iterator[tuple[int, bytes]]:
        """See `FileSystem.pieces`."""
        with Path(self._path(file)).open("rb") as opened:
            for begin, end in sparse.extents(opened.fileno()):
                for offset in range(begin, end, _CHUNK):
                    yield offset, os.pread(opened.fileno(), min(_CHUNK, end - offset), offset)

    def extents(self, file: Node) -> Iterator[tuple[int, int]]:
        """See `FileSystem.extents`."""
        with Path(self._path(file)).open("rb") as opened:
            for begin, end in sparse.extents(opened.fileno()):
                yield begin, end - begin

    def _path(self, node: Node) -> str:
        return self._at(node.path)

    def _at(self, path: str) -> str:
        # As text: the slash after the folder follows a symlink like those in /proc/self/fd.
        return f"{self._top}/{path}"

    def _node(self, path: str) -> Node:
        found = os.lstat(self._at(path))
        uid, gid = self._owner or (found.st_uid, found.st_gid)
        mode = found.st_mode if self._mode is None else found.st_mode & 0o170000 | self._mode
        mtime, device = found.st_mtime_ns // 10**9, (os.major(found.st_rdev), os.minor(found.st_rdev))
        number = found.st_dev << 64 | found.st_ino  # a file system may have others mounted in it
        return Node(self, path, number, mode, uid, gid, found.st_size, mtime, found.st_nlink, device)
