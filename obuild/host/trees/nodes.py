"""What a tree consists of: nodes, which file systems know how to read."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from obuild.errors import ObuildError
from obuild.host.trees.damage import damaged

#: How many symlinks are followed in one path, as by Linux.
MOST_LINKS = 40


class Node(NamedTuple):
    """A file, folder, link or device.

    `path` has no leading slash; the root's is "". Bytes that are not UTF-8 are surrogates in it. `size` is in
    bytes, `mtime` in whole seconds since the epoch. Nodes with the same `source` and `inode` are the same file.
    `device` is the major and the minor number. `raw` is for the source alone.
    """

    source: FileSystem
    path: str
    inode: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    links: int = 1
    device: tuple[int, int] = (0, 0)
    raw: bytes = b""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


class FileSystem(Protocol):
    """A file system that is read without changing it. ObuildError from any method if it is damaged."""

    def root(self) -> Node:
        """The folder at the top; its path is ""."""
        ...

    def children(self, folder: Node) -> list[Node]:
        """What is in a folder, in the order of the names' bytes. Names are valid, and each is there once."""
        ...

    def target(self, link: Node) -> str:
        """Where a symlink leads."""
        ...

    def xattrs(self, node: Node) -> dict[str, bytes]:
        """The extended attributes by their full names, such as security.capability."""
        ...

    def pieces(self, file: Node) -> Iterator[tuple[int, bytes]]:
        """The data of a file as offsets and bytes, in order. Holes are left out, and what is between is zeros."""
        ...

    def extents(self, file: Node) -> Iterator[tuple[int, int]]:
        """Where the data of a file is: offset and length in bytes, in order. `pieces` has the same bytes."""
        ...


def is_device(mode: int) -> bool:
    """Whether a node with this mode is a device, which has numbers."""
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def join(folder: str, name: str) -> str:
    """The path of `name` in a folder."""
    return f"{folder}/{name}" if folder else name


def encode(text: str) -> bytes:
    """The bytes of a path or a target."""
    return text.encode("utf-8", "surrogateescape")


def decode(name: bytes) -> str:
    """The text for bytes of a path or a target."""
    return name.decode("utf-8", "surrogateescape")


def checked(folder: Node, names: list[bytes]) -> None:
    """ObuildError if names of a damaged or hostile file system lead out of the folder, or one is there twice."""
    bad = {b"", b".", b".."}
    if len(set(names)) < len(names) or any(name in bad or b"/" in name or b"\0" in name for name in names):
        raise damaged(f"/{folder.path} has a wrong name in it, or one twice")


def content(file: Node, most: int = 64 << 20) -> bytes:
    """The content of a file. ObuildError if it has more than `most` bytes."""
    if file.size > most:
        raise ObuildError(f"/{file.path} in the layer is too large to be read: {file.size} bytes")
    data = bytearray(file.size)
    for offset, piece in file.source.pieces(file):
        data[offset : offset + len(piece)] = piece
    return bytes(data)


class Tree:
    """A root file system with others mounted on its folders: `mounts` has them by path, the root's being ""."""

    def __init__(self, mounts: dict[str, FileSystem]) -> None:
        self._mounts = mounts

    def root(self) -> Node:
        """The folder at the top."""
        return self._mounts[""].root()

    def children(self, folder: Node) -> list[Node]:
        """What is in a folder, in the order of the names' bytes. What fsck keeps for itself is left out."""
        found = folder.source.children(folder)
        if folder.path in self._mounts:
            found = [node for node in found if node.name != "lost+found"]
        return [self._mounted(node) for node in found]

    def _mounted(self, node: Node) -> Node:
        if node.is_folder and node.path in self._mounts:
            return self._mounts[node.path].root()._replace(path=node.path)
        return node

    def walk(self) -> Iterator[Node]:
        """All nodes: the root first, a folder before what is in it, names in the order of their bytes."""
        seen: set[tuple[FileSystem, int]] = set()
        waiting = [self.root()]
        while waiting:
            node = waiting.pop()
            yield node
            if node.is_folder:
                if (node.source, node.inode) in seen:
                    raise damaged(f"/{node.path} is in two folders, or in itself")
                seen.add((node.source, node.inode))
                waiting += reversed(self.children(node))

    def find(self, path: str) -> Node | None:
        """What is at `path`, from the root. Links are followed, also the last, and never lead out of the tree."""
        todo, parents, links = _parts(path), [self.root()], 0
        while todo:
            part = todo.pop()
            if part == "..":
                parents = parents[:-1] or parents
                continue
            if not parents[-1].is_folder:
                return None
            node = next((node for node in self.children(parents[-1]) if node.name == part), None)
            if node is None:
                return None
            if not node.is_link:
                parents.append(node)
                continue
            links += 1
            if links > MOST_LINKS:
                return None
            target = node.source.target(node)
            if target.startswith("/"):
                del parents[1:]
            todo += _parts(target)
        return parents[-1]

    def read(self, path: str, most: int = 64 << 20) -> bytes | None:
        """The content of a file, as `find` finds it; None if there is none.

        ObuildError if it has more than `most` bytes.
        """
        node = self.find(path)
        return content(node, most) if node is not None and node.is_file else None


def _parts(path: str) -> list[str]:
    """The parts of a path, last first."""
    return [part for part in reversed(path.split("/")) if part not in ("", ".")]
