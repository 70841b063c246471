"""Files and folders that are replaced or removed whole, that survive a power cut, or that are ours for a while."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obuild import locks
from obuild.errors import ObuildError


def replace_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a small file so that it appears with all of `text`, or not at all."""
    import tempfile  # late: a cached build writes nothing

    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    written = Path(name)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
        written.chmod(mode)
        written.replace(path)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


def fsync(path: Path) -> None:
    """Have what a file or folder holds on the disk before anything that is written from now on."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def discard(path: Path) -> None:
    """Remove a file, or a folder with all below it; whoever else removes it at the same time is welcome."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ObuildError(f"cannot remove {path}: {error.strerror}") from error


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
        with aside.open("rb") as file:
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
