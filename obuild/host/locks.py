"""Kernel locks on files and folders: a process that dies releases them, so no lock is ever stale.

`flock(2)` locks belong to the open file, not to the process: two threads of one process exclude
each other just as two processes do, and a lock ends when its last descriptor is closed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from obuild.host.regular import NotAFile, open_fd, open_folder

#: How often a waiter for a claim looks at it, in seconds.
LOOK = 0.05

#: The longest message (`Claim.word`), in bytes.
MAX_WORD = 1 << 16


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Lock the file `path` exclusively; yields whether it is held. It is created for this and removed at the end.

    Without `wait`, yields False at once if another holds it. Look, lock, look again: the holder removes
    the file before it releases the lock, so after locking we check that ours is still the file at `path`.
    """
    while True:
        fd = open_fd(path, os.O_RDWR | os.O_CREAT)
        try:
            if not _flock(fd, fcntl.LOCK_EX, wait=wait):
                yield False
                return
            if not _same(fd, path):
                continue
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """A lock that its holder can leave a message in. If `held` is False, `word` is the last holder's message."""

    held: bool
    word: bytes
    _fd: int

    def leave(self, word: bytes) -> None:
        """Leave a message to all who wait now: they get it in place of the lock. At most 64 KiB."""
        os.pwrite(self._fd, word[:MAX_WORD], 0)


@contextmanager
def claim(path: Path, *, meanwhile: Callable[[], object] = lambda: None) -> Iterator[Claim]:
    """As `file_lock`, but `meanwhile` is called repeatedly while another holds it, and its message is passed on.

    The message is written into the lock file, which all waiters have open. That of a holder that was killed does
    not count: its file is still at `path`, so it did not release the lock itself.
    """
    while True:
        fd = open_fd(path, os.O_RDWR | os.O_CREAT)
        try:
            while not _flock(fd, fcntl.LOCK_EX, wait=False):
                meanwhile()
                time.sleep(LOOK)
            if not _same(fd, path):
                if word := os.pread(fd, MAX_WORD, 0):
                    yield Claim(False, word, fd)
                    return
                continue
            os.ftruncate(fd, 0)
            try:
                yield Claim(True, b"", fd)
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(fd)


def create_locked(path: Path) -> BinaryIO:
    """Create a file and lock it exclusively until it is closed. It stays. FileExistsError if there is one."""
    fd = open_fd(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        _flock(fd, fcntl.LOCK_EX, wait=True)  # somebody may be looking whether it is held
        return os.fdopen(fd, "r+b", buffering=0)
    except BaseException:
        os.close(fd)
        raise


def is_free(path: Path) -> bool:
    """Whether there is a lock file at `path` that nobody holds: its holder was killed."""
    return _held(path) is False


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock file `path`. Writes nothing."""
    return _held(path) is True


def _held(path: Path) -> bool | None:
    """Whether somebody holds a lock file; None if there is none."""
    try:
        fd = open_fd(path, os.O_RDONLY)
    except (FileNotFoundError, NotAFile):
        return None
    try:
        if not _flock(fd, fcntl.LOCK_SH, wait=False):
            return True
        return False if _same(fd, path) else None
    finally:
        os.close(fd)


@contextmanager
def folder_lock(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Lock an existing folder; yields False if another holds it (without `wait`) or it is gone.

    Anything that is not a folder, or a symlink to one, counts as gone: it is not ours.
    """
    try:
        fd = open_folder(path)
    except (FileNotFoundError, NotADirectoryError):
        yield False
        return
    try:
        held = _flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait=wait)
        yield held and _same(fd, path)
    finally:
        os.close(fd)


def _flock(fd: int, how: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(fd, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(fd: int, path: Path) -> bool:
    """Whether `path` still names the file that `fd` has open."""
    try:
        there, ours = path.lstat(), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
