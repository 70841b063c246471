"""The host's DNS servers for a step with the host's network: /etc/resolv.conf, put back afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from obuild.executors.native.guest_path import Places

_OURS = Path("/etc/resolv.conf")

#: What the guest's own file is called meanwhile.
_ASIDE = ".resolv.conf.obuild"


@contextmanager
def of_the_host(places: Places) -> Iterator[None]:
    """Let the guest use the host's file. If the command changes it, that stays; else the guest's own returns."""
    folder = places.host(places.resolve("/etc"))
    if folder is None or not folder.is_dir():
        yield
        return
    file, aside = folder / "resolv.conf", folder / _ASIDE
    with _same_time(folder):
        if os.path.lexists(file):
            file.rename(aside)
        file.write_bytes(_OURS.read_bytes() if _OURS.exists() else b"")
    ours = _stamp(file)
    try:
        yield
    finally:
        with _same_time(folder):
            if _stamp(file) != ours:  # the command's own
                aside.unlink(missing_ok=True)
            else:
                file.unlink()
                with suppress(FileNotFoundError):
                    aside.rename(file)


@contextmanager
def _same_time(folder: Path) -> Iterator[None]:
    """Keep the folder's times, whatever is done in it."""
    seen = folder.stat()
    yield
    os.utime(folder, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def _stamp(path: Path) -> tuple[int, int] | None:
    """The inode of a file and when it was changed last; None if there is none."""
    with suppress(FileNotFoundError):
        seen = path.lstat()
        return seen.st_ino, seen.st_mtime_ns
    return None
