"""The files of a copy: walk and hash them.

A tree has what will be copied: paths, contents, permission bits, symlinks, hard links. Owners and times
are not part of it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Literal, NamedTuple

from obuild.errors import UsageError

Kind = Literal["file", "dir", "symlink", "link"]

#: Exactly what changes the result of a copy: kind, path, permission bits and content of each file.
Manifest = tuple[tuple[str, ...], ...]


class Entry(NamedTuple):
    """One path of a tree.

    `path` is relative to the destination folder, `source` to the source folder. `content` is a file's
    sha256, a symlink's target, or, for a hard link, the `path` of the entry that it is another name of.
    """

    kind: Kind
    path: str
    source: str
    mode: int = 0
    size: int = 0
    content: str = ""


class Tree(NamedTuple):
    """Files below `root`, parents before children, siblings in byte order."""

    root: Path
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """The total size of the files, in bytes."""
        return sum(entry.size for entry in self.entries)

    @property
    def manifest(self) -> Manifest:
        """Exactly what changes the result of a copy."""
        return tuple((entry.kind, entry.path, f"{entry.mode:o}", entry.content) for entry in self.entries)


def walk(root: Path, sources: Iterable[str], *, exclude: Iterable[str] = (), rename: str | None = None) -> Tree:
    """The tree of `sources` below `root`: each under its basename, or a single one as `rename`.

    The source folder itself (`.`) stands for its contents, and so does a folder that is renamed to "". Files
    whose basename is in `exclude` are left out. UsageError for a source that is missing, leads outside `root`
    (through `..` or a symlink) or is not a file, folder or symlink.
    """
    walker = _Walker(root, frozenset(exclude))
    for source in sources:
        parts = _checked(root, source)
        inside = rename if rename is not None else (parts[-1] if parts else "")
        walker.visit("/".join(parts), inside)
    return Tree(root, tuple(walker.entries))


def is_root(source: str) -> bool:
    """Whether `source` names the source folder itself, or the root of a build."""
    return all(part in ("", ".") for part in source.split("/"))


def is_folder(root: Path, source: str) -> bool:
    """Whether `source` names a folder (not a symlink to one). UsageError as `walk`."""
    return stat.S_ISDIR(_lstat(root, "/".join(_checked(root, source))).st_mode)


def _checked(root: Path, source: str) -> list[str]:
    """The components of `source`; each but the last is a real folder, so the path stays inside `root`."""
    parts = [part for part in source.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UsageError(f"copy source {source!r} leads outside the source directory: '..' is not allowed")
    for depth in range(1, len(parts)):
        parent = "/".join(parts[:depth])
        if not stat.S_ISDIR(_lstat(root, parent, source).st_mode):
            raise UsageError(
                f"copy source {source!r}: {parent!r} is not a directory",
                hint="a path through a symlink could lead outside the source directory",
            )
    _lstat(root, "/".join(parts), source)
    return parts


def _lstat(root: Path, path: str, source: str | None = None) -> os.stat_result:
    try:
        return (root / path).lstat() if path else root.stat()  # the source folder itself may be a symlink
    except FileNotFoundError:
        raise UsageError(f"copy source {source or path!r} not found in {root}") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)  # str(error) would repeat the path
        raise UsageError(f"cannot read copy source {source or path!r}: {why}") from error


class _Walker:
    def __init__(self, root: Path, exclude: frozenset[str]) -> None:
        self.root = root
        self.exclude = exclude
        self.entries: list[Entry] = []
        self.inodes: dict[tuple[int, int], str] = {}
        self.paths: dict[str, tuple[int, int]] = {}

    def visit(self, source: str, path: str) -> None:
        """Add `source` as `path`, with all below it. Not recursive, for deep trees."""
        todo = [(source, path)]
        while todo:
            source, path = todo.pop()
            status = _lstat(self.root, source)
            if stat.S_ISDIR(status.st_mode):
                if path:
                    self.entries.append(Entry("dir", path, source, stat.S_IMODE(status.st_mode)))
                todo.extend(reversed(self.children(source, path)))
            else:
                self.entries.append(self.leaf(source, path, status))

    def children(self, source: str, path: str) -> list[tuple[str, str]]:
        try:
            names = os.listdir(self.root / source)
        except OSError as error:
            raise UsageError(f"cannot read the folder {source!r} to copy: {error.strerror}") from error
        return [
            (_join(source, name), _join(path, name))
            for name in sorted(names, key=os.fsencode)
            if name not in self.exclude
        ]

    def leaf(self, source: str, path: str, status: os.stat_result) -> Entry:
        if stat.S_ISLNK(status.st_mode):
            return Entry("symlink", path, source, 0o777, 0, readlink(self.root / source))
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(
                f"cannot copy {source!r}: it is neither a file, a folder nor a symlink",
                hint=f"leave it out: (exclude {source.rpartition('/')[2]})",
            )
        inode = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and self.inodes.get(inode, path) != path:
            return Entry("link", path, source, 0, 0, self.inodes[inode])
        # of two sources with one basename the later wins: files of the first cannot be linked to any more
        self.inodes.pop(self.paths.get(path, inode), None)
        self.inodes[inode], self.paths[path] = path, inode
        return self.file(source, path)

    def file(self, source: str, path: str) -> Entry:
        try:
            with open_file(self.root / source) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                status = os.fstat(file.fileno())
        except OSError as error:
            raise UsageError(f"cannot read {source!r} to copy it: {error.strerror}") from error
        return Entry("file", path, source, stat.S_IMODE(status.st_mode), status.st_size, digest)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def readlink(path: Path) -> str:
    """The exact target of a symlink; pathlib would normalize it."""
    return os.readlink(path)  # noqa: PTH115


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading; never through a symlink, never blocking on a fifo."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
