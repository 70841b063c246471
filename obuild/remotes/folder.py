"""`dir:PATH`: a folder with an OCI image layout, on this computer or a network's file system."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from obuild.errors import ObuildError, UsageError, words
from obuild.host import locks
from obuild.host.fs import replace_bytes
from obuild.host.regular import open_file
from obuild.remotes.layout import Layout

_LOCK = ".lock"


class Folder:
    """See `Objects`."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self._root = name, root

    def read(self, name: str, most: int) -> bytes | None:
        with self._explained("read"):
            try:
                with open_file(self._root / name) as file:
                    data = file.read(most + 1)
            except FileNotFoundError:
                return None
        if len(data) > most:
            raise ObuildError(f"{name} in {self.name} is larger than it should be")
        return data

    def exists(self, name: str) -> bool:
        """Also sets the time of the file: who asks will not send it, so it must not count as old."""
        with self._explained("use"):
            try:
                os.utime(self._root / name)
            except FileNotFoundError:
                return False
            except PermissionError:  # another user's
                pass
            return True

    def write(self, name: str, data: bytes) -> None:
        with self._explained("write to"):
            path = self._root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_bytes(path, data, durable=True)

    def update(self, name: str, most: int, change: Callable[[bytes | None], bytes | None]) -> None:
        with self._explained("write to"):
            self._root.mkdir(parents=True, exist_ok=True)
            with locks.file_lock(self._root / _LOCK):
                data = change(self.read(name, most))
                if data is not None:
                    replace_bytes(self._root / name, data, durable=True)

    def older(self, prefix: str, seconds: float) -> Iterator[tuple[str, int]]:
        with self._explained("read"):
            limit = time.time() - seconds
            for path in sorted(self._root.glob(f"{prefix}*")):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_mtime < limit:
                    yield path.relative_to(self._root).as_posix(), status.st_size

    def delete(self, name: str) -> None:
        with self._explained("remove from"):
            (self._root / name).unlink(missing_ok=True)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ObuildError(f"cannot {what} {self.name}: {words(error)}") from error


@contextmanager
def open_folder(place: str, name: str) -> Iterator[Layout]:
    """Open the remote. UsageError if there is something else."""
    root = Path(place)
    if not place or (root.exists() and not root.is_dir()):
        raise UsageError(f"{name} is not a folder", hint="write it like dir:/srv/layers")
    if root.is_dir() and not (root / "oci-layout").exists() and not _begun(root):
        raise UsageError(f"{name} is neither empty nor an OCI image layout", hint="name a new folder")
    yield Layout(Folder(name, root))


def _begun(root: Path) -> bool:
    """Whether somebody is about to make a layout there."""
    return {each.name for each in root.iterdir()} <= {"blobs", "index.json", _LOCK}
