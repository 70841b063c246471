"""Files and folders of a store that are what they should be: nothing is waited for, and no symlink is followed.

Whoever may write to a store, or a broken tool, can put anything anywhere: a named pipe that a plain open(2) waits
for without end, a symlink that leads to somebody else's files. What is not a regular file where one should be is a
`NotAFile`, at once.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

#: The most that is read of a small file, in bytes. The longest are keys: one may list 100,000 files.
MOST = 1 << 28

_KINDS = {
    stat.S_IFLNK: "a symlink",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

#: What open(2) says of a symlink that is not to be followed, of a socket, and of a device that is not there.
_ODD = (errno.ELOOP, errno.ENXIO, errno.ENODEV)


class NotAFile(OSError):
    """Something else is where a regular file should be; `strerror` says what."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(errno.EINVAL, f"it is {kind(path)}, and not a file", os.fspath(path))


def kind(path: Path | str) -> str:
    """What is at `path`, in words; a symlink is one, wherever it leads."""
    try:
        return _KINDS.get(stat.S_IFMT(os.lstat(path).st_mode), "a file")
    except OSError:
        return "nothing"


def is_file(path: Path) -> bool:
    """Whether a regular file is at `path`, and not a symlink to one."""
    return _is(path, stat.S_IFREG)


def is_folder(path: Path) -> bool:
    """Whether a folder is at `path`, and not a symlink to one."""
    return _is(path, stat.S_IFDIR)


def _is(path: Path, kind: int) -> bool:
    try:
        return stat.S_IFMT(os.lstat(path).st_mode) == kind
    except (FileNotFoundError, NotADirectoryError):
        return False


def open_file(path: Path, *, follow: bool = False) -> BufferedReader:
    """Open a regular file for reading; with `follow`, the one that a symlink leads to. NotAFile, OSError."""
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
    """All of a small file. NotAFile, OSError; one of them, too, for a file that is larger than any of ours."""
    with open_file(path, follow=follow) as file:
        if os.fstat(file.fileno()).st_size > MOST:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return file.read(MOST)


def read_text(path: Path, *, follow: bool = False) -> str:
    """As `read_bytes`, as UTF-8. ValueError if it is none."""
    return read_bytes(path, follow=follow).decode("utf-8")


def open_folder(path: Path) -> int:
    """A descriptor of a folder, and not of one that a symlink leads to. NotADirectoryError, OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
