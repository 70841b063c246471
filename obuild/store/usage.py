"""How many bytes things take on disk. Nothing here writes, so that it works on a full disk, too."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from obuild.host import units

#: What is in which folder of a store, as a user would call it.
FOLDERS = {
    "base images": "base-image",
    "layers": "result",
    "caches": "cache",
    "drafts": "result-tmp",
    "copies of caches": "cache-tmp",
    "warm states": "warm",
    "running machines": "warm-tmp",
    "flattened layers": "flat",
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
