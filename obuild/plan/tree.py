"""The files of a copy: walk them, digest them, stream them as tar, check them again while sending.

A tree says what will arrive: paths, contents, permission bits, symlinks, hard links. Owners and times
are not part of it. What is sent is what was hashed, or sending fails.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol, cast

if TYPE_CHECKING:
    import tarfile

from obuild.errors import ObuildError, UsageError
from obuild.host import tar_reader

Kind = Literal["file", "dir", "symlink", "link"]

#: What of some files changes the result of a copy, and nothing else: kind, path, permission bits, content of each.
Manifest = tuple[tuple[str, ...], ...]

#: The most that the files in a guest's archive may hold together, in bytes. A sparse file of 8 EiB fits into a
#: small archive, and it would take years to hash.
MOST_CONTENT = 1 << 40

_ZEROS = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a tree.

    `path` is where it goes, relative to the destination folder; `source` where it comes from, relative
    to the source folder. `content` is a file's sha256, a symlink's target, or, of a hard link, the
    `path` of the entry that it is another name of.
    """

    kind: Kind
    path: str
    source: str
    mode: int = 0
    size: int = 0
    content: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """Files below `root`, parents before children, siblings in byte order."""

    root: Path
    entries: tuple[Entry, ...]

    @property
    def manifest(self) -> Manifest:
        """What of the tree changes the result of a copy."""
        return tuple((entry.kind, entry.path, f"{entry.mode:o}", entry.content) for entry in self.entries)


def walk(root: Path, sources: Iterable[str], *, exclude: Iterable[str] = (), rename: str | None = None) -> Tree:
    """The tree of `sources` below `root`: each under its basename, or a single one as `rename`.

    The source folder itself (`.`) stands for its contents, and so does a folder that is renamed to "". Files
    whose basename is in `exclude` are left out. UsageError for a source that is missing, leads outside `root`
    (through `..` or a symlink) or is no file, folder or symlink.
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
        why = error.strerror if isinstance(error, OSError) else str(error)  # which would name the path once more
        raise UsageError(f"cannot read copy source {source or path!r}: {why}") from error


class _Walker:
    def __init__(self, root: Path, exclude: frozenset[str]) -> None:
        self.root = root
        self.exclude = exclude
        self.entries: list[Entry] = []
        self.inodes: dict[tuple[int, int], str] = {}
        self.paths: dict[str, tuple[int, int]] = {}

    def visit(self, source: str, path: str) -> None:
        """Add `source` as `path`, with all below it; deep trees need no recursion."""
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
            return Entry("symlink", path, source, 0o777, 0, _readlink(self.root / source))
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(
                f"cannot copy {source!r}: it is neither a file, a folder nor a symlink",
                hint=f"leave it out: (exclude {source.rpartition('/')[2]})",
            )
        inode = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and self.inodes.get(inode, path) != path:
            return Entry("link", path, source, 0, 0, self.inodes[inode])
        # of two sources with one basename the later stays: what the first put there can be linked to no more
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


def _readlink(path: Path) -> str:
    """The very text of a symlink; pathlib would tidy it up."""
    return os.readlink(path)  # noqa: PTH115


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading; never through a symlink, never blocking on a fifo."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


class Sink(Protocol):
    """Where a tar stream goes."""

    def write(self, data: bytes, /) -> object: ...


def send(tree: Tree, sink: Sink, *, uid: int, gid: int) -> None:
    """Stream the tree as a GNU tar archive into `sink`, everything owned by uid:gid, times kept.

    ObuildError if a file is no longer what it was when the tree was hashed; the stream then ends without
    an end-of-archive mark and must not be used. `sink` must not raise OSError.
    """
    import tarfile

    out = cast(BinaryIO, sink)
    # errors: names that are no UTF-8 travel as the bytes they are
    with tarfile.open(
        fileobj=out, mode="w|", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for entry in tree.entries:
            info = tarfile.TarInfo(entry.path)
            info.uid, info.gid, info.mode = uid, gid, entry.mode
            try:
                _add(archive, info, tree.root / entry.source, entry)
            except OSError as error:
                raise _changed(entry) from error


def _add(archive: tarfile.TarFile, info: tarfile.TarInfo, path: Path, entry: Entry) -> None:
    status = path.lstat()
    info.mtime = int(status.st_mtime)
    match entry.kind:
        case "dir":
            info.type = b"5"
            archive.addfile(info)
        case "symlink":
            info.type, info.linkname = b"2", entry.content
            if _readlink(path) != entry.content:
                raise _changed(entry)
            archive.addfile(info)
        case "link":
            info.type, info.linkname = b"1", entry.content
            archive.addfile(info)
        case "file":
            info.size = entry.size
            _add_file(archive, info, path, entry)


def _add_file(archive: tarfile.TarFile, info: tarfile.TarInfo, path: Path, entry: Entry) -> None:
    with open_file(path) as file:
        reader = _HashingReader(file)
        archive.addfile(info, reader)  # type: ignore[arg-type]  # it only calls read
        status = os.fstat(file.fileno())
        same = reader.hash.hexdigest() == entry.content and status.st_size == entry.size
        if not same or stat.S_IMODE(status.st_mode) != entry.mode:
            raise _changed(entry)


class _HashingReader:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.hash.update(data)
        return data


def _changed(entry: Entry) -> ObuildError:
    return ObuildError(
        f"{entry.source!r} changed while it was being copied",
        hint="nothing was saved; build again when the source directory is at rest",
    )


def manifest_of(path: Path, *, owner: tuple[int, int] | None = None, pax: bool = False) -> Manifest:
    """The manifest of a tar archive that a guest's GNU tar made, or with `pax` another; nothing is unpacked here.

    ObuildError if it is damaged, holds what a copy cannot (a device, say), names paths outside itself, or says
    that something belongs to another user than `owner` (uid, gid), if it is given: then what a guest made of it
    would not be what its manifest says.
    """
    found = []
    total = 0
    try:
        if pax:
            return _from_pax(path)
        with path.open("rb") as file:
            # GNU tar's, which is understood in one way or not at all
            for member in tar_reader.members(file, strict=True):
                total += member.size
                if total > MOST_CONTENT:
                    raise ObuildError(f"the guest sent files of more than {MOST_CONTENT >> 40} TiB")
                if owner not in (None, (member.uid, member.gid)):
                    raise ObuildError(f"the guest sent {member.path!r} with another owner than was asked for")
                found.append(_described(file, member))
    except tar_reader.Damaged as error:
        raise ObuildError(f"the guest sent no sound tar archive: {error}") from error
    return tuple(found)


def _from_pax(path: Path) -> Manifest:
    """As manifest_of, for what the tar of FreeBSD and Windows writes.

    tarfile reads it, which is not as strict: what it cannot read may end the archive, owners are not looked at,
    and a hostile guest can make it think for long.
    """
    import tarfile

    found = []
    total = 0
    try:
        with (
            path.open("rb") as file,
            tarfile.open(path, mode="r:", encoding="utf-8", errors="surrogateescape") as members,
        ):
            end = -1
            for info in members:
                if members.offset <= end or (total := total + info.size) > MOST_CONTENT:
                    raise ObuildError("the guest sent no sound tar archive")
                end = members.offset
                pieces = getattr(info, "sparse", None)
                extents = ((0, info.size),) if pieces is None else tuple(pieces)
                kind = tar_reader.FILE if info.isreg() else info.type.decode("latin-1")
                found.append(
                    _described(
                        file,
                        tar_reader.Member(
                            kind=kind,
                            path=info.name,
                            link=info.linkname,
                            mode=info.mode,
                            uid=info.uid,
                            gid=info.gid,
                            size=info.size,
                            start=info.offset_data,
                            extents=extents,
                        ),
                    )
                )
    except (
        tarfile.TarError,
        EOFError,
        ValueError,
        OverflowError,
        IndexError,
        RecursionError,
        MemoryError,
    ) as error:
        raise ObuildError(f"the guest sent no sound tar archive: {error}") from error
    return tuple(found)


def _described(file: BinaryIO, member: tar_reader.Member) -> tuple[str, ...]:
    path = member.path.rstrip("/") if member.kind == tar_reader.FOLDER else member.path
    path = path.removeprefix("./")
    if path.startswith("/") or ".." in path.split("/"):
        raise ObuildError(f"the guest sent an archive with the path {member.path!r}")
    mode = f"{member.mode & 0o7777:o}"
    match member.kind:
        case tar_reader.FOLDER:
            return ("dir", path, mode, "")
        case tar_reader.SYMLINK:
            return ("symlink", path, "777", member.link)
        case tar_reader.LINK:
            return ("link", path, "0", member.link.removeprefix("./"))
        case tar_reader.FILE | tar_reader.SPARSE:
            return ("file", path, mode, _content(file, member))
    raise ObuildError(
        f"cannot copy {path!r} from the build: it is neither a file, a folder nor a symlink",
        hint=f"leave it out: (exclude {path.rpartition('/')[2]})",
    )


def _content(file: BinaryIO, member: tar_reader.Member) -> str:
    """The sha256 of a member's file."""
    digest = hashlib.sha256()
    file.seek(member.start)
    end = 0
    for offset, size in member.extents:
        _add_zeros(digest, offset - end)
        _add_bytes(digest, file, size)
        end = offset + size
    _add_zeros(digest, member.size - end)
    return digest.hexdigest()


def _add_zeros(digest: hashlib._Hash, count: int) -> None:
    for _ in range(count // len(_ZEROS)):
        digest.update(_ZEROS)
    digest.update(_ZEROS[: count % len(_ZEROS)])


def _add_bytes(digest: hashlib._Hash, file: BinaryIO, count: int) -> None:
    while data := file.read(min(count, len(_ZEROS))):
        digest.update(data)
        count -= len(data)
