"""The format of a store: the number in STORE/format.

This version might take files of a newer format for rubbish, or damage them, so a store with a newer format is
refused before anything in it is swept or changed. A store without the file was made by a development version: its
layers have keys of format 1, and everything else in it is as in format 1.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from obuild.errors import UsageError
from obuild.host import locks
from obuild.host.fs import replace_text
from obuild.host.regular import open_file

#: The newest format that this version can use, and the format that it writes.
FORMAT = 1

NAME = "format"

#: The errors of a file system that cannot make hard links or change modes.
_UNSUITABLE = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)

_NUMBER = re.compile(rb"([1-9][0-9]{0,8})\n?")


def check(root: Path) -> None:
    """UsageError if the store has a newer format, or its format cannot be read. Changes nothing."""
    path = root / NAME
    try:
        with open_file(path) as file:
            found = _NUMBER.fullmatch(file.read(100))
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unknown(path, error.strerror or "") from error
    if found is None:
        raise _unknown(path, "it has no number in it")
    if int(found[1]) > FORMAT:
        raise UsageError(
            f"the store {root} has format {int(found[1])}, but this obuild only supports up to {FORMAT}",
            hint="use a newer version of obuild, or another store: --store=qemu:FOLDER",
        )


def mark(root: Path, lock: Path) -> None:
    """Write the format of this version into a store that has none. Errors as for `check`.

    UsageError also if the file system cannot hold a store. `lock` keeps two versions from writing at once: the
    older could otherwise replace the newer one's format.
    """
    path = root / NAME
    if path.exists():
        return
    with locks.file_lock(lock):
        check(root)
        if not path.exists():
            _see_suitable(root, lock)
            replace_text(path, f"{FORMAT}\n", durable=True, point="store.formatting")


def _see_suitable(root: Path, lock: Path) -> None:
    """UsageError if the file system lacks hard links or cannot change modes, as vfat and exFAT.

    A new base image could not be put in place, and finished layers could not be made read-only. The caller holds
    `lock`. After a crash the link is a lock file that nobody holds, which is harmless.
    """
    link = lock.with_stem(f"{lock.stem}-link")
    try:
        link.unlink(missing_ok=True)
        os.link(lock, link)
        link.chmod(0o400)
    except OSError as error:
        if error.errno not in _UNSUITABLE:
            raise
        why = f"it lacks hard links or permissions ({error.strerror})"
        raise UsageError(
            f"the file system of {root} cannot hold a store: {why}",
            hint="name a folder on ext4, xfs, btrfs or tmpfs, for example: --store=qemu:FOLDER",
        ) from error
    finally:
        link.unlink(missing_ok=True)


def _unknown(path: Path, why: str) -> UsageError:
    return UsageError(
        f"cannot tell the format of the store: {path}: {why}",
        hint="if no newer obuild has used this store, move the file away: the next build writes a new one",
    )
