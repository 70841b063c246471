"""Replace and remove files and folders as a whole, flush them to the disk, and own temporary folders."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from obuild.errors import ObuildError, ProcessError
from obuild.host import failpoints, locks
from obuild.host.regular import NotAFile, open_file, open_folder


def replace_text(path: Path, text: str, *, mode: int = 0o644, durable: bool = False, point: str = "") -> None:
    """As `replace_bytes`, in UTF-8."""
    replace_bytes(path, text.encode(), mode=mode, durable=durable, point=point)


def replace_bytes(
    path: Path, content: bytes, *, mode: int = 0o644, durable: bool = False, point: str = ""
) -> None:
    """Write a small file that appears with all of `content` or not at all. NotAFile if `path` is a folder.

    With `durable`, it is on the disk when this returns. `point` is the failpoint just before it appears.
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
    """Flush a file or folder to the disk, before anything that is written later."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def flushing(folder: Path) -> Iterator[None]:
    """Flush the file system that a folder is in during the block. Its errors are for who completes it to find."""
    import ctypes  # late, as the other thread: for native steps only

    from obuild.host.parallel import meanwhile

    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with meanwhile(ctypes.CDLL(None).syncfs, fd):
            yield
    finally:
        os.close(fd)


@contextmanager
def writing_out(file: Path) -> Iterator[None]:
    """Flush a file over and over while others write it, so that flushing it at the end takes no time.

    It is created if it is not there.
    """
    from obuild.host.parallel import again

    with file.open("ab") as opened, again(lambda: os.fdatasync(opened.fileno()), pause=0.02):
        yield


def touch(path: Path) -> None:
    """Set the times of a file or folder to now, its last use. If another user owns it, they stay."""
    with suppress(PermissionError):
        os.utime(path)


def discard(path: Path) -> None:
    """Remove a file, or a folder with all below it. Another process may remove it at the same time.

    Of a symlink only the link is removed: none is followed, neither here nor below. The folder that holds `path`
    must not be a symlink; one that is put there meanwhile is not followed either.
    """
    try:
        folder = open_folder(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _stays(path, error) from error
    try:
        if stat.S_ISDIR(os.lstat(path.name, dir_fd=folder).st_mode):
            _remove_tree(path.name, folder)
        else:
            os.unlink(path.name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _stays(path, error) from error
    finally:
        os.close(folder)


def _remove_tree(name: str, folder: int) -> None:
    """Remove a folder, however deep it is. OSError as rmdir(2)."""
    try:
        shutil.rmtree(name, dir_fd=folder)
        return
    except RecursionError:
        pass
    except OSError as error:  # Python keeps each folder open while it is in one below
        if error.errno != errno.EMFILE:
            raise
    from obuild.host import process  # late: only a guest makes such folders

    try:
        process.run(["rm", "-rf", "--", f"./{name}"], cwd=Path(f"/proc/{os.getpid()}/fd/{folder}"))
    except ProcessError as error:
        raise OSError(errno.EIO, error.message) from error


def _stays(path: Path, error: OSError) -> ObuildError:
    return ObuildError(f"cannot remove {path}: {error.strerror}")


def in_memory(name: str, content: bytes = b"") -> BinaryIO:
    """A file in memory only, at its beginning: a process that dies leaves nothing behind.

    `name` is what /proc shows.
    """
    file = os.fdopen(os.memfd_create(f"obuild-{name}"), "r+b", buffering=0)
    file.write(content)
    file.seek(0)
    return file


#: The content of a file that stands for a folder being removed; see `move_out`.
_LEAVING = b"on its way out\n"


def move_out(folder: Path, aside: Path, *, first: str) -> None:
    """Remove a finished folder from its place by renaming it to `aside`, where it is rubbish.

    A folder in the lower layer of an overlay file system (a store that came with a container image) cannot be
    renamed. It is removed in place, its file `first` before all else: without that file, the folder does not count
    as complete. Meanwhile a file at `aside` says after a crash that it was being removed; see `leaving`.
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
    """Whether `aside` is a file that `move_out` has left behind."""
    try:
        with open_file(aside) as file:
            return file.read(len(_LEAVING) + 1) == _LEAVING
    except OSError:
        return False


@contextmanager
def owned_folder(parent: Path, name: str, *, mode: int = 0o777) -> Iterator[Path]:
    """A new folder N-NAME that is locked while it is in use; if nobody holds the lock, it is rubbish.

    It is removed when the block ends. `mode` is as for mkdir(2).
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
            if not held:  # a sweep locked it first and will remove it: make another
                continue
            try:
                yield folder
            finally:
                discard(folder)
            return
