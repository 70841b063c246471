"""Files and folders that are replaced or removed whole, that survive a power cut, or that are ours for a while."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from obuild.errors import ObuildError
from obuild.host import failpoints, locks
from obuild.host.regular import NotAFile, open_file, open_folder


def replace_text(path: Path, text: str, *, mode: int = 0o644, durable: bool = False, point: str = "") -> None:
    """As `replace_bytes`, in UTF-8."""
    replace_bytes(path, text.encode(), mode=mode, durable=durable, point=point)


def replace_bytes(
    path: Path, content: bytes, *, mode: int = 0o644, durable: bool = False, point: str = ""
) -> None:
    """Write a small file that appears with all of `content` or not at all. NotAFile if a folder is there.

    With `durable`, it is on the disk when this returns. `point` names the moment before it appears.
    """
    import tempfile  # late: a cached build writes nothing

    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    written = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        written.chmod(mode)
        if durable:
            fsync(written)
        if point:
            failpoints.reach(point)
        try:
            written.replace(path)
        except IsADirectoryError:
            raise NotAFile(path) from None
    except BaseException:
        written.unlink(missing_ok=True)
        raise
    if durable:
        fsync(path.parent)


def fsync(path: Path) -> None:
    """Have what a file or folder holds on the disk before anything that is written from now on."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def touch(path: Path) -> None:
    """Have the time of a file or folder be now: its last use. What is another user's keeps its time."""
    with suppress(PermissionError):
        os.utime(path)


def discard(path: Path) -> None:
    """Remove a file, or a folder with all below it; whoever else removes it at the same time is welcome.

    Of a symlink the link goes, and never what it leads to: neither here nor below is one followed, and the folder
    that holds `path` is no symlink either, whoever changes what while we are at it.
    """
    try:
        folder = open_folder(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _stays(path, error) from error
    try:
        if stat.S_ISDIR(os.lstat(path.name, dir_fd=folder).st_mode):
            shutil.rmtree(path.name, dir_fd=folder)
        else:
            os.unlink(path.name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _stays(path, error) from error
    finally:
        os.close(folder)


def _stays(path: Path, error: OSError) -> ObuildError:
    return ObuildError(f"cannot remove {path}: {error.strerror}")


def in_memory(name: str, content: bytes = b"") -> BinaryIO:
    """A file that is only in memory: who dies leaves nothing behind. `name` is for who looks in /proc."""
    file = os.fdopen(os.memfd_create(f"obuild-{name}"), "r+b", buffering=0)
    file.write(content)
    return file


#: What a file holds that says of a folder that it is on its way out.
_LEAVING = b"on its way out\n"


def move_out(folder: Path, aside: Path, *, first: str) -> None:
    """Have a finished folder gone from its place: it becomes `aside`, where it is rubbish, by a rename.

    A folder in the lower part of an overlay cannot be renamed, as where a store came with a container's image.
    It is removed where it is, its file `first` before all else: without that, nobody takes it for whole. A file
    `aside` tells meanwhile that it is leaving, for whoever finds that after a crash; see `leaving`.
    """
    try:
        folder.rename(aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        aside.write_bytes(_LEAVING)
        fsync(aside)
        fsync(aside.parent)
        (folder / first).unlink(missing_ok=True)
        fsync(folder)
        discard(folder)


def leaving(aside: Path) -> bool:
    """Whether there is a file here that `move_out` has left behind."""
    try:
        with open_file(aside) as file:
            return file.read(len(_LEAVING) + 1) == _LEAVING
    except OSError:
        return False


@contextmanager
def owned_folder(parent: Path, name: str, *, mode: int = 0o777) -> Iterator[Path]:
    """A new folder N-NAME that is locked while it is in use, so that its lock says if it is rubbish.

    It is gone when the block ends. `mode` is as for mkdir(2).
    """
    number = 0
    while True:
        folder = parent / f"{number}-{name}"
        number += 1
        try:
            folder.mkdir(mode)
        except FileExistsError:
            continue
        with locks.folder_lock(folder, wait=False) as held:
            if not held:  # a sweep was quicker than our lock: it takes the folder away, we take another
                continue
            try:
                yield folder
            finally:
                discard(folder)
            return
