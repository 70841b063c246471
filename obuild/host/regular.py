"""Open files and folders of a store that may have been replaced: never block, and follow no symlink.

Anybody who may write to a store, or a broken tool, can put anything anywhere: a named pipe on which a plain
open(2) blocks for ever, a symlink to somebody else's files. Anything but a regular file where one should be
raises `NotAFile` at once.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

#: The largest small file that is read, in bytes. The largest are keys: one may list 100,000 files.
MOST = 1 << 28

_KINDS = {
    stat.S_IFLNK: "a symlink",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

#: The errors of open(2) for a symlink under O_NOFOLLOW, for a socket, and for a device that does not exist.
_ODD = (errno.ELOOP, errno.ENXIO, errno.ENODEV)


class NotAFile(OSError):
    """A path that should be a regular file is something else; `strerror` says what."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(errno.EINVAL, f"it is {kind(path)}, not a file", os.fspath(path))


def kind(path: Path | str) -> str:
    """What is at `path`, in words. A symlink is not followed."""
    try:
        return _KINDS.get(stat.S_IFMT(os.lstat(path).st_mode), "a file")
    except OSError:
        return "nothing"


def is_file(path: Path) -> bool:
    """Whether `path` is a regular file, and not a symlink to one."""
    return _is(path, stat.S_IFREG)


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder, and not a symlink to one."""
    return _is(path, stat.S_IFDIR)


def _is(path: Path, kind: int) -> bool:
    try:
        return stat.S_IFMT(os.lstat(path).st_mode) == kind
    except (FileNotFoundError, NotADirectoryError):
        return False


def open_file(path: Path, *, follow: bool = False) -> BufferedReader:
    """Open a regular file for reading; with `follow`, also through a symlink. NotAFile, OSError."""
    return os.fdopen(open_fd(path, os.O_RDONLY, follow=follow), "rb")


def open_fd(path: Path, flags: int, *, follow: bool = False, mode: int = 0o644) -> int:
    """As open(2), for a regular file. NotAFile for anything else, OSError."""
    flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags, mode)
    except IsADirectoryError:
        raise NotAFile(path) from None
    except OSError as error:
        if error.errno in _ODD:
            raise NotAFile(path) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotAFile(path)
    return fd


def read_bytes(path: Path, *, follow: bool = False) -> bytes:
    """All of a small file. NotAFile; OSError, also for a file larger than `MOST`."""
    with open_file(path, follow=follow) as file:
        if os.fstat(file.fileno()).st_size > MOST:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return file.read(MOST)


def read_text(path: Path, *, follow: bool = False) -> str:
    """As `read_bytes`, decoded as UTF-8. ValueError if it is not UTF-8."""
    return read_bytes(path, follow=follow).decode("utf-8")


def open_folder(path: Path) -> int:
    """Open a folder; a symlink to one is not followed. NotADirectoryError, OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
