"""Put base images in place atomically, with all files that belong to them: card, kernel, login key.

The files are collected in base-image/.NAME.part. Renaming that to .NAME.ready is the commit: after a crash, the
next process that opens the store moves the files into place. A .NAME.part is rubbish if nobody holds the base's
lock.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from obuild.errors import StoreError
from obuild.guests.profile import INITRD, KERNEL, NVRAM
from obuild.host import failpoints, locks
from obuild.host.fs import discard, fsync, replace_text
from obuild.host.regular import is_file, is_folder, read_text
from obuild.store import parts

#: The suffix of the file that says what a base image was made of, if it was made here.
MADE = ".made"

#: The suffixes of the sealed form of an image, and of what a TPM holds when that has booted.
SEALED, PCRS = ".verity.raw", ".pcrs.json"

#: The suffixes of a base image's files. The image is last: without it, there is no such base.
IMAGES = (".qcow2", ".img")
SUFFIXES = (KERNEL, INITRD, NVRAM, SEALED, PCRS, ".key", ".toml", MADE, *IMAGES)

_UNFINISHED = re.compile(r"\.[A-Za-z0-9][A-Za-z0-9._+:-]*\.(?:part|ready)")


class Places(NamedTuple):
    """The folder of base images, and their locks."""

    images: Path
    keys: Path
    locks: Path

    def lock(self, name: str) -> Path:
        """The lock of a base image, held to make, replace or remove it."""
        return self.locks / f"base-{name}.lock"

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """A folder for the files of a new base `name`, which replace all old files when the block ends.

        The caller holds the lock.
        """
        part = self.images / f".{name}.part"
        discard(part)
        self._see_free(name)
        try:
            part.mkdir()
            yield part
            for path in (*part.iterdir(), part):
                fsync(path)
            failpoints.reach("base.placing")
            part.rename(self._ready(name))
            fsync(self.images)
            failpoints.reach("base.placed")
            self._finish(name)
        finally:
            discard(part)

    def sweep(self) -> None:
        """Finish committed base images and remove uncommitted ones whose process has died."""
        for path in self.unfinished():
            name = path.stem[1:]
            with locks.file_lock(self.lock(name), wait=False) as free:
                if free and path.suffix == ".part":
                    discard(path)
                elif free and is_folder(path):
                    with suppress(OSError):  # `fsck` reports why
                        self._finish(name)

    def unfinished(self) -> list[Path]:
        """The folders of base images that are not in place yet."""
        found = parts.entries(self.images, _UNFINISHED)
        return [path for path in found if path.suffix == ".part" or _is_complete(path)]

    def remove(self, name: str) -> None:
        """Remove a base image and all its files. The caller holds the lock."""
        self._see_free(name)
        for suffix in reversed(SUFFIXES):  # the image first: without it there is no such base
            self.place(name, suffix).unlink(missing_ok=True)

    def _see_free(self, name: str) -> None:
        """StoreError if a folder is in the place of a file: only half of the base would be put in place."""
        for place in (self.place(name, suffix) for suffix in SUFFIXES):
            if is_folder(place):
                raise StoreError(f"{place} is a folder, where a file should be", hint="move it away")

    def _finish(self, name: str) -> None:
        """Move the files into place. After a crash at any point it can be repeated: the image goes last."""
        ready = self._ready(name)
        for suffix in SUFFIXES:
            new, place = ready / f"{name}{suffix}", self.place(name, suffix)
            if is_file(new) and suffix == ".key":
                place.parent.mkdir(mode=0o700, exist_ok=True)
                replace_text(place, read_text(new), mode=0o600)
            elif is_file(new):
                link = ready / "link"
                discard(link)
                os.link(new, link)
                link.replace(place)
            else:
                place.unlink(missing_ok=True)
        fsync(self.images)
        part = self.images / f".{name}.part"
        discard(part)
        ready.rename(part)
        discard(part)

    def _ready(self, name: str) -> Path:
        return self.images / f".{name}.ready"

    def place(self, name: str, suffix: str) -> Path:
        """Where the file of a base image with this suffix is."""
        return (self.keys if suffix == ".key" else self.images) / f"{name}{suffix}"


def _is_complete(ready: Path) -> bool:
    """Whether the folder holds an image, which is moved last. If not, it must not replace a base."""
    name = ready.stem[1:]
    return any(is_file(ready / f"{name}{suffix}") for suffix in IMAGES)
