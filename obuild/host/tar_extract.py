"""A file or a folder out of an archive that a guest made: it appears whole, under one name, or not at all.

The guest may be hostile. All is made in a fresh folder that nobody else can enter, each file and folder in a
folder that was made here before it, and nothing that is there is ever opened again to be written to. No symlink
is made before all the rest is, so none can be followed. Owners, special bits of modes, and devices stay behind.
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

#: How many folders may be inside each other. To remove them again, Python's library calls itself as often.
DEEPEST = 256

#: File systems that have no hard links, or not so many, say one of these.
_NO_LINK = (errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)

#: Character and block devices, and pipes. Sockets are in no archive.
_SPECIAL = ("3", "4", "6")

_CHUNK = 1 << 20

Parts = tuple[str, ...]


def place(dest: str, name: str) -> Path:
    """Where something called `name` (a root folder is "") goes if the user says `dest`, as for cp.

    UsageError if nothing can be put there.
    """
    path = Path(dest)
    if path.is_dir():
        if not name:
            raise UsageError(f"{dest} is there already", hint="a root folder needs a new name")
        path /= name
    elif dest.endswith("/"):
        raise UsageError(f"there is no folder {dest}")
    if path.is_dir():  # or a symlink to one: on many systems /bin is
        raise UsageError(f"{path} is there already, and is a folder", hint="remove it, or name another place")
    if path.exists() and not path.is_file():  # /dev/null, say: it would be replaced
        raise UsageError(
            f"{path} is not a regular file", hint="name another place; - writes a tar archive to stdout"
        )
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}")
    return path


def unpack(archive: Path, path: Path, *, root: bool, strict: bool) -> list[str]:
    """Make the one file or folder that is in an archive as `path`, of which only the parent is there.

    Returns what is left out: the names of devices and pipes.

    If it is a guest's `root`, the archive holds what is in that. `strict` is as for tarball. ObuildError, and
    there is nothing at `path` but what was there before, if the archive is not sound, or cannot be written out.
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
        raise ObuildError(f"the guest sent no sound tar archive: {error}") from error
    except OSError as error:
        raise ObuildError(f"cannot write {path}: {error.strerror}") from error
    return list(tree.skipped.values())


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder of our own beside `path`, gone when the block ends."""
    # not a TemporaryDirectory: to be rid of all that is in it, Python before 3.11.8 changes modes through symlinks
    folder = Path(tempfile.mkdtemp(prefix=".obuild-", dir=path.parent.resolve()))
    try:
        yield folder
    finally:
        discard(folder)


@dataclass(slots=True)
class _Tree:
    """What is being made at `top`. Names are relative to it: its own is the empty tuple."""

    top: Path
    root: bool
    first: str = ""  # what the guest calls it
    folders: dict[Parts, int] = field(default_factory=dict)  # the modes that they are to have
    files: dict[Parts, Member] = field(default_factory=dict)
    symlinks: dict[Parts, str] = field(default_factory=dict)
    skipped: dict[Parts, str] = field(default_factory=dict)

    def add(self, file: BinaryIO, member: Member) -> None:
        parts = self.parts(member.path)
        if any(parts in known for known in (self.folders, self.files, self.symlinks, self.skipped)):
            raise _refused(f"{member.path!r} twice")
        if parts and parts[:-1] not in self.folders:
            raise _refused(f"{member.path!r}, and not the folder that it is in")
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
                raise _refused(f"{member.path!r}, of a kind {member.kind!r} that nobody knows")

    def parts(self, name: str) -> Parts:
        """The parts of a member's name, below the top."""
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
        """Make a file, with its holes."""
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
        """Make a second name of what was made before; or, if there are no hard links here, a copy."""
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
            raise _refused(f"{member.path!r}, a hard link to {member.link!r}, which it did not send before")

    def finish(self) -> None:
        """What comes last: symlinks, and the modes of folders, which may forbid to write into them."""
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
        """Take the modes of folders back, so that they can be removed."""
        for parts in self.folders:
            with suppress(OSError):
                self.path(parts).chmod(0o700)


def _replace(tree: _Tree, path: Path) -> None:
    """Let the tree appear at `path`, unless something there does not give way to it. ObuildError then."""
    what = "a folder" if () in tree.folders else "a file" if () in tree.files else "a symlink"
    if not _gives_way(path, what):
        raise ObuildError(f"{path} is there already, and is not replaced by {what}", hint="remove it before")
    if what != "a folder":
        tree.top.rename(path)
        return
    fd = os.open(tree.top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        tree.top.rename(path)
        os.fchmod(fd, tree.folders[()])  # last: a folder that forbids to write into it cannot be moved
    finally:
        os.close(fd)


def _gives_way(path: Path, what: str) -> bool:
    """A file gives way to a file, a symlink that leads to no folder to what is none, and all else to nothing."""
    if not os.path.lexists(path):
        return True
    return (
        what != "a folder" and not path.is_dir() and (path.is_symlink() or (what == "a file" and path.is_file()))
    )


def _copy(file: BinaryIO, fd: int, offset: int, size: int) -> None:
    """The next `size` bytes of an archive into a file."""
    while size:
        data = memoryview(file.read(min(size, _CHUNK)))
        if not data:
            raise ObuildError("the archive has shrunk")
        size -= len(data)
        while data:
            written = os.pwrite(fd, data, offset)
            data, offset = data[written:], offset + written


def _checked(text: str) -> str:
    """A name or a symlink's target as this system takes it: the bytes that it was. Not one with a NUL."""
    if "\0" in text:
        raise _refused(f"{text[:1000]!r}, a name with a NUL")
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def _refused(what: str) -> ObuildError:
    return ObuildError(f"the guest sent {what}", hint="nothing was written: no system's own tar does that")
