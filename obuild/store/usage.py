"""Disk usage, and the errors for a full disk. Nothing here writes, so it works on a full disk."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from obuild.errors import ProcessError, StoreError
from obuild.host import units

#: The names for users of the folders of a store.
FOLDERS = {
    "base images": "base-image",
    "downloads": "downloads",
    "layers": "result",
    "caches": "cache",
    "drafts": "result-tmp",
    "copies of caches": "cache-tmp",
    "warm states": "warm",
    "running machines": "warm-tmp",
    "flattened layers": "flat",
    "images to publish": "outbox",
    "tags": "tags",
    "state": "state",
}


def on_disk(path: Path | str) -> int:
    """The size on disk of a file, or of a folder with all its content, in bytes; without holes.

    The size of a file is divided equally among its hard links. What cannot be read, or vanishes, counts as 0.
    """
    return _sizes([path])


def within(folder: Path | str) -> int:
    """As `on_disk`, for the content of a folder without the folder itself; 0 if it is gone."""
    return _sizes(_inside(folder))


def _sizes(left: list[Path | str]) -> int:
    taken = 0
    while left:  # a guest may nest folders deeper than Python can call functions
        path = left.pop()
        with suppress(OSError):
            status = os.lstat(path)
            is_folder = stat.S_ISDIR(status.st_mode)
            taken += status.st_blocks * 512 // (1 if is_folder else status.st_nlink)
            if is_folder:
                left += _inside(path)
    return taken


def _inside(folder: Path | str) -> list[Path | str]:
    with suppress(OSError):
        return [os.path.join(folder, name) for name in os.listdir(folder)]  # noqa: PTH118  # fast
    return []


def in_words(root: Path) -> str:
    """The disk usage of a store in one line, the largest first: `layers 3.2 GiB, caches 1.1 GiB`.

    It reads all folders and no database, so that it works whatever is broken.
    """
    taken = {what: on_disk(root / folder) for what, folder in FOLDERS.items()}
    largest = sorted(taken, key=lambda what: -taken[what])
    return ", ".join(f"{what} {units.size(taken[what])}" for what in largest if taken[what] >= 1 << 20) or "little"


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Turn the errors of a full or failing disk, or of a used-up quota, into a StoreError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            raise
        raise no_space(root, error.strerror or "") from error
    except ProcessError as error:
        full = [why for why in map(os.strerror, (errno.ENOSPC, errno.EDQUOT)) if why in error.message]
        if not full:
            raise
        raise no_space(root, full[0]) from error


def no_space(root: Path, why: str) -> StoreError:
    """The error for a store that cannot be written to: what is free, what uses the space, and what to do."""
    status = os.statvfs(root)
    free = f"{status.f_bavail * status.f_frsize >> 20} MiB are free"
    if status.f_files and not status.f_favail:
        free += ", but its file system cannot hold more files"
    if why == os.strerror(errno.EDQUOT):
        free += ", but not for this user or folder: a disk quota is used up"
    hint = (
        f"{free}; in the store: {in_words(root)}; "
        "`obuild prune --keep-bytes SIZE` removes what is least recently used"
    )
    return StoreError(f"cannot write to the store {root}: {why}", hint=hint)
