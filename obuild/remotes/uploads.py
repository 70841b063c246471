"""Where unfinished uploads go on: what a server has called them, kept in files until they are finished."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from obuild.host.fs import replace_text
from obuild.host.regular import is_file, read_text

#: How long an unfinished upload is remembered, in seconds. Registries forget it after about as long.
KEPT = 7 * 86400.0


class Uploads:
    """The unfinished uploads of a store. Each has a name, made of where it goes and the digest of its content.

    Losing an entry only means to begin again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, name: str) -> str:
        """The place of an upload, "" if there is none."""
        try:
            return read_text(self._file(name))
        except (OSError, ValueError):
            return ""

    def put(self, name: str, place: str) -> None:
        """Remember the place; only the owner may read it, because it may be all that an upload needs."""
        self._folder.mkdir(exist_ok=True)
        for old in self._folder.iterdir():
            if is_file(old) and old.stat().st_mtime < time.time() - KEPT:
                old.unlink(missing_ok=True)
        replace_text(self._file(name), place, mode=0o600)

    def forget(self, name: str) -> None:
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._folder / hashlib.sha256(name.encode()).hexdigest()
