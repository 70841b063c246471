"""Records of builds: a file for each, which the build writes to as it goes and keeps locked until it ends.

STORE/state/builds/NAME has one JSON object per line. NAME is when the build began, in UTC, so names sort by time.
A file that nobody holds is complete; if it lacks its last line, its build was killed. The newest `KEPT` stay.

They are files rather than rows of the index because the index can be rebuilt from the layers, and records cannot;
because a fully cached build does not even load SQLite; and because others can watch a file grow.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from obuild.host import locks
from obuild.host.regular import NotAFile, is_file, open_file

#: How many records are kept, and how many bytes of them at most.
KEPT = 100
MOST = 64 << 20

#: Matches the name of a record: `20260131-120000`, or with a number if several builds began in one second.
NAME = re.compile(r"[0-9]{8}-[0-9]{6}(?:-[0-9]{1,4})?")


class Builds:
    """The records of a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """The names of all records, the newest last."""
        with suppress(FileNotFoundError):
            return sorted(filter(NAME.fullmatch, os.listdir(self.folder)), key=_order)
        return []

    @contextmanager
    def begin(self, began: float) -> Iterator[tuple[str, BinaryIO]]:
        """A new record, empty and locked until the block ends: its name, and the file to write to. OSError."""
        self.folder.mkdir(exist_ok=True)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(began))
        number = 1
        while True:
            name = stamp if number == 1 else f"{stamp}-{number}"
            try:
                file = locks.create_locked(self.folder / name)
                break
            except FileExistsError:
                number += 1
        with file:
            self._remove_old()
            yield name, file

    def _remove_old(self) -> None:
        """Remove all but the newest. Those of running builds stay."""
        left = MOST
        for age, name in enumerate(reversed(self.names())):
            path = self.folder / name
            with suppress(OSError):
                left -= path.lstat().st_size
                if (age >= KEPT or left < 0) and is_file(path) and not locks.is_held(path):
                    path.unlink()

    def is_running(self, name: str) -> bool:
        """Whether the build of a record has not ended. Writes nothing."""
        return locks.is_held(self.folder / name)

    def open(self, name: str) -> BinaryIO:
        """Open a record for reading. FileNotFoundError if it is gone, or something else is in its place."""
        try:
            return open_file(self.folder / name)
        except NotAFile as error:
            raise FileNotFoundError(name) from error


def _order(name: str) -> tuple[str, int]:
    number = name[16:]
    return name[:15], int(number or 1)
