"""Extract a file or a folder from an archive that a guest made. It appears whole, under one name, or not at all.

The guest may be hostile. Everything is made in a new folder that nobody else can enter, each file and folder in a
folder that was made here before it, and nothing that exists is ever opened again for writing. Symlinks are made
last, so none can be followed. Owners, special mode bits, and devices are left out.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from obuild.errors import ObuildError, UsageError
from obuild.host import tar_reader
from obuild.host.fs import discard
from obuild.host.tar_reader import Member

#: How deep folders may be nested. shutil.rmtree recurses as deep to remove them again.
DEEPEST = 256

#: The errors of file systems that have no hard links, or not that many.
_NO_LINK = (errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)

#: Character and block devices, and pipes. No archive holds sockets.
_SPECIAL = ("3", "4", "6")

_CHUNK = 1 << 20

Parts = tuple[str, ...]


def place(dest: str, name: str) -> Path:
    """Where something called `name` ("" for a root folder) goes if the user says `dest`, as cp does it.

    UsageError if nothing can be put there.
    """
    path = Path(dest)
    if path.is_dir():
        if not name:
            raise UsageError(f"{dest} already exists", hint="a root folder needs a new name")
        path /= name
    elif dest.endswith("/"):
        raise UsageError(f"there is no folder {dest}")
    if path.is_dir():  # or a symlink to one: on many systems /bin is
        raise UsageError(f"{path} already exists and is a folder", hint="remove it, or name another place")
    if path.exists() and not path.is_file():  # such as /dev/null, which would be replaced
        raise UsageError(
            f"{path} is not a regular file", hint="name another place; - writes a tar archive to stdout"
        )
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}")
    return path


def unpack(archive: Path, path: Path, *, root: bool, strict: bool) -> list[str]:
    """Extract the one file or folder in an archive as `path`, whose parent exists.

    Returns the names of what is left out: devices and pipes.

    If it is a guest's `root`, the archive holds the content of that folder. `strict` is as for
    `tar_reader.members`. ObuildError if the archive is not sound or cannot be extracted; `path` is then as before.
    """
    try:
        with _beside(path) as folder, archive.open("rb") as file:
            tree = _Tree(folder / "it", root)
            try:
                for member in tar_reader.members(file, strict=strict):
                    tree.add(file, member)
                tree.finish()
                _replace(tree, path)
            finally:
                tree.reopen()
    except tar_reader.Damaged as error:
        raise ObuildError(f"the guest sent a damaged tar archive: {error}") from error
    except OSError as error:
        raise ObuildError(f"cannot write {path}: {error.strerror}") from error
    return list(tree.skipped.values())


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder of our own beside `path`, removed when the block ends."""
    # Not a TemporaryDirectory: to remove one, Python before 3.11.8 changes modes through symlinks.
    folder = Path(tempfile.mkdtemp(prefix=".obuild-", dir=path.parent.resolve()))
    try:
        yield folder
    finally:
        discard(folder)


@dataclass(slots=True)
class _Tree:
    """The tree being extracted to `top`. Names are relative to that: its own is the empty tuple."""

    top: Path
    root: bool
    first: str = ""  # the guest's name of it
    folders: dict[Parts, int] = field(default_factory=dict)  # the modes that they get at the end
    files: dict[Parts, Member] = field(default_factory=dict)
    symlinks: dict[Parts, str] = field(default_factory=dict)
    skipped: dict[Parts, str] = field(default_factory=dict)

    def add(self, file: BinaryIO, member: Member) -> None:
        parts = self.parts(member.path)
        if any(parts in known for known in (self.folders, self.files, self.symlinks, self.skipped)):
            raise _refused(f"{member.path!r} twice")
        if parts and parts[:-1] not in self.folders:
            raise _refused(f"{member.path!r} without the folder that holds it")
        match member.kind:
            case tar_reader.FOLDER:
                self.path(parts).mkdir(0o700)
                self.folders[parts] = member.mode & 0o777
            case tar_reader.FILE | tar_reader.SPARSE:
                self.write(file, member, parts)
            case tar_reader.SYMLINK:
                self.symlinks[parts] = _checked(member.link)
            case tar_reader.LINK:
                self.link(file, member, parts)
            case kind if kind in _SPECIAL:
                self.skipped[parts] = member.path
            case _:
                raise _refused(f"{member.path!r}, which is of an unknown kind, {member.kind!r}")

    def parts(self, name: str) -> Parts:
        """The parts of a member's name, relative to the top."""
        text = _checked(name).removeprefix("./").removesuffix("/")
        parts = tuple(text.split("/")) if text not in ("", ".") else ()
        if name.startswith("/") or not {"", ".", ".."}.isdisjoint(parts) or len(parts) > DEEPEST:
            raise _refused(f"the path {name[:1000]!r}")
        if self.root:
            return parts
        self.first = self.first or (parts[0] if parts else "")
        if not parts or parts[0] != self.first:
            raise _refused(f"{name!r}, which was not asked for")
        return parts[1:]

    def path(self, parts: Parts) -> Path:
        return self.top.joinpath(*parts)

    def write(self, file: BinaryIO, member: Member, parts: Parts) -> None:
        """Write a file, with its holes."""
        if member.size >= 1 << 63:
            raise _refused(f"{member.path!r}, which is larger than a file can be")
        fd = os.open(self.path(parts), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, member.size)
            file.seek(member.start)
            for offset, size in member.extents:
                _copy(file, fd, offset, size)
            os.fchmod(fd, member.mode & 0o777)
        finally:
            os.close(fd)
        self.files[parts] = member

    def link(self, file: BinaryIO, member: Member, parts: Parts) -> None:
        """Make another name of something made before; a copy if the file system has no hard links."""
        first = self.parts(member.link)
        if first in self.skipped:
            self.skipped[parts] = member.path
        elif first in self.symlinks:
            self.symlinks[parts] = self.symlinks[first]
        elif first in self.files:
            try:
                os.link(self.path(first), self.path(parts), follow_symlinks=False)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                self.write(file, self.files[first], parts)
            self.files[parts] = self.files[first]
        else:
            raise _refused(f"{member.path!r}, a hard link to {member.link!r}, which it had not sent before")

    def finish(self) -> None:
        """Do what comes last: symlinks, and the modes of folders, which may not be writable."""
        if () in self.skipped:
            raise ObuildError(f"{self.skipped[()]!r} is a device or a pipe: it cannot be copied")
        if not any(() in known for known in (self.folders, self.files, self.symlinks)):
            raise _refused("an empty archive")
        for parts, target in self.symlinks.items():
            self.path(parts).symlink_to(target)
        for parts, mode in reversed(self.folders.items()):
            if parts:
                self.path(parts).chmod(mode)

    def reopen(self) -> None:
        """Make all folders writable again, so that they can be removed."""
        for parts in self.folders:
            with suppress(OSError):
                self.path(parts).chmod(0o700)


def _replace(tree: _Tree, path: Path) -> None:
    """Move the tree to `path`. ObuildError if something is there that it must not replace."""
    what = "a folder" if () in tree.folders else "a file" if () in tree.files else "a symlink"
    if not _gives_way(path, what):
        raise ObuildError(f"{path} already exists and is not replaced by {what}", hint="remove it first")
    if what != "a folder":
        tree.top.rename(path)
        return
    fd = os.open(tree.top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        tree.top.rename(path)
        os.fchmod(fd, tree.folders[()])  # last: a folder that is not writable cannot be moved
    finally:
        os.close(fd)


def _gives_way(path: Path, what: str) -> bool:
    """Whether `what` may replace what is at `path`.

    A file may replace a file; anything but a folder may replace a symlink that leads to no folder.
    """
    if not os.path.lexists(path):
        return True
    return (
        what != "a folder" and not path.is_dir() and (path.is_symlink() or (what == "a file" and path.is_file()))
    )


def _copy(file: BinaryIO, fd: int, offset: int, size: int) -> None:
    """Copy the next `size` bytes of an archive into a file."""
    while size:
        data = memoryview(file.read(min(size, _CHUNK)))
        if not data:
            raise ObuildError("the archive has shrunk")
        size -= len(data)
        while data:
            written = os.pwrite(fd, data, offset)
            data, offset = data[written:], offset + written


def _checked(text: str) -> str:
    """A name or a symlink's target, as the host's file system takes it: the same bytes. A NUL is refused."""
    if "\0" in text:
        raise _refused(f"{text[:1000]!r}, a name with a NUL")
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def _refused(what: str) -> ObuildError:
    return ObuildError(f"the guest sent {what}", hint="nothing was written; no system's tar does this")
