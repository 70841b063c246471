"""A step's own copy of a cache: taken, and saved unless another was quicker."""

from __future__ import annotations

import os
from pathlib import Path

from obuild.errors import StoreError
from obuild.host import failpoints, locks, qemu_img
from obuild.host.fs import fsync, touch
from obuild.host.regular import is_file, is_folder, kind


class CacheCopy:
    """One step's copy of a cache: a tar archive that only guests ever unpack."""

    def __init__(self, name: str, path: Path, master: Path, lock: Path) -> None:
        self.name = name
        self.path = path
        self._master = master
        self._lock = lock
        self._taken: tuple[int, int] | None = None

    def take(self) -> None:
        """Copy what the cache holds now; an empty cache has no file."""
        with locks.file_lock(self._lock):
            self._taken = self._version()
            if self._taken is not None:
                touch(self._master.parent)
                qemu_img.copy(self._master, self.path)
                failpoints.reach("cache.copied")

    def save(self, archive: Path) -> bool:
        """Make `archive` the cache, unless another step has done so first: False, and ours is dropped."""
        with locks.file_lock(self._lock):
            if self._version() != self._taken:
                return False
            if self._taken is not None and _same_content(self._master, archive):
                return True
            self._put(archive)
            return True

    def replace(self, archive: Path) -> None:
        """Make `archive` the cache, whatever it is by now; a step that has a copy then drops what it saves."""
        with locks.file_lock(self._lock):
            self._version()
            self._put(archive)

    def _put(self, archive: Path) -> None:
        self._master.parent.mkdir(exist_ok=True)
        fsync(archive)
        failpoints.reach("cache.saving")
        archive.rename(self._master)
        failpoints.reach("cache.saved")
        fsync(self._master.parent)
        fsync(self._master.parent.parent)

    def _version(self) -> tuple[int, int] | None:
        """Inode and time of what the cache holds; None for nothing. StoreError if it is something else."""
        folder = self._master.parent
        for path, is_right in ((folder, is_folder), (self._master, is_file)):
            if os.path.lexists(path) and not is_right(path):
                hint = "`obuild fsck --repair` moves it out of the way"
                raise StoreError(f"{path} is {kind(path)}, where a cache should be", hint=hint)
        try:
            status = self._master.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


def escape(name: str) -> str:
    """A cache's name as one file name: letters, digits and `.-_` stay, other bytes become %XX."""
    from urllib.parse import quote

    quoted = quote(name.encode("utf-8", "surrogateescape"), safe="")
    return quoted.replace("~", "%7E")


def unescape(name: str) -> str:
    """The name that `escape` made `name` of."""
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(name).decode("utf-8", "surrogateescape")


def _same_content(one: Path, other: Path) -> bool:
    import filecmp

    return filecmp.cmp(one, other, shallow=False)
