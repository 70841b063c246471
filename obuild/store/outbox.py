"""Images on their way elsewhere: kept until they have arrived, so that an interrupted upload can go on.

STORE/outbox/NAME/ has the images of one publication; it is named by the digest of what they are made of. Whoever
makes or sends them has the folder locked. With the file READY, they are complete.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from obuild.errors import ObuildError
from obuild.host import failpoints, locks
from obuild.host.fs import discard, replace_text, touch
from obuild.host.regular import is_file
from obuild.store import parts

READY = "READY"

#: How long complete images that nobody sends are kept, in seconds.
KEPT = 86400.0


class Outbox:
    """The publications of a store that have not ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def images(self, key: str, make: Callable[[Path], object]) -> Iterator[Path]:
        """The folder with the images that `key` describes; they are made unless an earlier try has left them.

        If the block raises, they stay for the next try. Another process that wants the same waits.
        """
        folder = self.folder / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        while True:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locks.folder_lock(folder) as held:
                if not held:  # another process has sent them, or a sweep has removed the folder
                    continue
                if not is_file(folder / READY):
                    self._fill(folder, make)
                touch(folder)
                yield folder
                discard(folder)
                return

    def _fill(self, folder: Path, make: Callable[[Path], object]) -> None:
        for left in folder.iterdir():
            discard(left)
        try:
            make(folder)
            replace_text(folder / READY, "", durable=True)
        except BaseException:
            discard(folder)
            raise
        failpoints.reach("publish.exported")

    def waiting(self) -> list[str]:
        """The names of images that nobody makes or sends at the moment."""
        found = []
        with suppress(FileNotFoundError):
            for folder in parts.entries(self.folder, parts.ID):
                with locks.folder_lock(folder, wait=False) as free:
                    if free:
                        found.append(folder.name)
        return found

    def remove(self, name: str) -> bool:
        """Remove images; False if a process has begun to use them."""
        with locks.folder_lock(self.folder / name, wait=False) as free:
            if free:
                discard(self.folder / name)
            return free

    def sweep(self) -> None:
        """Remove what a killed process has not completed, and complete images that nobody has sent for a day."""
        for name in self.waiting():
            folder = self.folder / name
            with suppress(OSError, ObuildError):
                if not is_file(folder / READY) or folder.stat().st_mtime < time.time() - KEPT:
                    self.remove(name)
