"""Downloaded files, each kept under its digest, and unfinished downloads.

A file named sha256-HEX or sha512-HEX has that digest: it was verified before it got its name. A name that ends
in .part is a download that can be resumed. Both can be downloaded again, so both may be removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from obuild.host import failpoints, locks
from obuild.host.fs import fsync
from obuild.host.regular import is_file
from obuild.store import parts

UNFINISHED = ".part"


@dataclass(frozen=True, slots=True)
class Downloads:
    """The folder of downloads, and the folder of their locks."""

    folder: Path
    locks: Path

    def lock(self, name: str, *, wait: bool = True) -> AbstractContextManager[bool]:
        """The lock of a download, held to write or remove it; `name` is without .part."""
        return locks.file_lock(self.locks / f"download-{name}.lock", wait=wait)

    def find(self, digest: str) -> Path | None:
        """The file with this digest, sha256:HEX or sha512:HEX, if it exists."""
        path = self.folder / name_of(digest)
        return path if is_file(path) else None

    def begin(self, name: str) -> Path:
        """The path to write the download `name` to. The caller holds its lock."""
        self.folder.mkdir(exist_ok=True)
        return self.folder / f"{name}{UNFINISHED}"

    def keep(self, part: Path, digest: str) -> Path:
        """Give a complete download its final name. The caller has verified its digest, and holds the lock."""
        path = self.folder / name_of(digest)
        fsync(part)
        failpoints.reach("download.keeping")
        part.replace(path)
        fsync(self.folder)
        failpoints.reach("download.kept")
        return path

    def names(self) -> Iterator[str]:
        """The names of all files that obuild has put here."""
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(self.folder)):
                if parts.DOWNLOAD.fullmatch(name) and is_file(self.folder / name):
                    yield name

    def in_use(self, name: str) -> bool:
        """Whether a file is being written or removed. (Making an image of one uses a hard link to it.)"""
        with self.lock(name.removesuffix(UNFINISHED), wait=False) as free:
            return not free

    def remove(self, name: str) -> bool:
        """Remove a file; False if it is in use."""
        with self.lock(name.removesuffix(UNFINISHED), wait=False) as free:
            if free:
                (self.folder / name).unlink(missing_ok=True)
            return free


def name_of(digest: str) -> str:
    """The file name for this digest."""
    return digest.replace(":", "-")
