"""Kernel locks on files and folders: whoever dies lets go, so no lock is ever stale.

`flock(2)` locks belong to the open file, not to the process: two threads of one process exclude
each other just as two processes do, and a lock ends when its last descriptor is closed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the exclusive lock file `path`, made for this and removed at the end; yields whether it is held.

    Without `wait` a lock that another holds yields False at once. Look, lock, look again: the holder
    removes the file before it lets go, so after locking we make sure that ours is the file at `path`.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
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


@contextmanager
def folder_lock(path: Path, *, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold a lock on a folder that exists; yields False if another holds it (without `wait`) or it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
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
        there, ours = path.stat(), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
