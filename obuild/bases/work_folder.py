"""Folders to make images in, which are gone afterwards, however that ends."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from obuild.errors import ObuildError
from obuild.host import locks, process
from obuild.host.fs import discard, owned_folder
from obuild.store import parts

#: Where to work if only the owner can enter the store's folder, and the name of the work folder.
VAR_TMP = Path("/var/tmp")
MAKING = "obuild-making"
_MAKING = re.compile(rf"[0-9]+-{MAKING}")


@contextmanager
def folder_in(folder: Path) -> Iterator[Path]:
    """Create a new folder in `folder`. It is removed with its content when the block ends, whatever happens.

    What a process of ours has left there that was killed goes, too: nobody else sweeps outside the store.
    """
    for left in parts.entries(folder, _MAKING):
        if left.stat().st_uid == os.geteuid():
            with locks.folder_lock(left, wait=False) as dead:
                if dead:
                    _remove(left)
    with owned_folder(folder, MAKING) as path:
        try:
            # Other users may pass through, to names that they know.
            path.chmod(0o711)
            yield path
        finally:
            _remove(path)


def _remove(path: Path) -> None:
    with suppress(ObuildError):
        discard(path)
    if path.exists():
        # A killed mmdebstrap has left files of other uids, which only its own namespace can remove.
        process.run(["mmdebstrap", "--unshare-helper", "rm", "-rf", *(path / "tmp").iterdir()])
        discard(path)
