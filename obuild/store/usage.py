"""How many bytes things take on disk, and what to say when there is no room. Nothing here writes: it works on a
full disk.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from obuild.errors import ProcessError, StoreError
from obuild.host import units

#: What is in which folder of a store, as a user would call it.
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
    "tags": "tags",
    "state": "state",
}


def on_disk(path: Path | str) -> int:
    """Bytes that a file, or a folder with all in it, takes on disk; holes left out.

    Each name of a file counts an equal part of it. What cannot be read, or vanishes while we look, counts nothing.
    """
    taken = 0
    with suppress(OSError):
        status = os.lstat(path)
        taken = status.st_blocks * 512
        if stat.S_ISDIR(status.st_mode):
            taken += within(path)
        elif status.st_nlink > 1:
            taken //= status.st_nlink
    return taken


def within(folder: Path | str) -> int:
    """As `on_disk`, of what is in a folder and not of the folder itself; 0 if it is gone."""
    with suppress(OSError):
        return sum(on_disk(os.path.join(folder, name)) for name in os.listdir(folder))  # noqa: PTH118  # quick
    return 0


def in_words(root: Path) -> str:
    """What takes the room of a store, the largest first, in one line: `layers 3.2 GiB, caches 1.1 GiB`.

    It reads all folders and no database, so that it can be said whatever is broken.
    """
    taken = {what: on_disk(root / folder) for what, folder in FOLDERS.items()}
    largest = sorted(taken, key=lambda what: -taken[what])
    return ", ".join(f"{what} {units.size(taken[what])}" for what in largest if taken[what] >= 1 << 20) or "little"


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Turn a full disk or a failing one into a StoreError that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            raise
        raise no_space(root, error.strerror or "") from error
    except ProcessError as error:
        full = os.strerror(errno.ENOSPC)
        if full not in error.message:
            raise
        raise no_space(root, full) from error


def no_space(root: Path, why: str) -> StoreError:
    """The error for a store that cannot be written to, with what is free, what takes the room, and what to do."""
    status = os.statvfs(root)
    free = f"{status.f_bavail * status.f_frsize >> 20} MiB are free"
    if status.f_files and not status.f_favail:
        free += ", but its file system can hold no more files"
    hint = (
        f"{free}; in the store: {in_words(root)}; "
        "`obuild prune --keep-bytes SIZE` removes what was not used for the longest time"
    )
    return StoreError(f"cannot write to the store {root}: {why}", hint=hint)
