"""Files that are replaced or removed whole, and that survive a power cut."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from obuild.errors import ObuildError


def replace_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a small file so that it appears with all of `text`, or not at all."""
    import tempfile  # late: a cached build writes nothing

    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    written = Path(name)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
        written.chmod(mode)
        written.replace(path)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


def fsync(path: Path) -> None:
    """Have what a file or folder holds on the disk before anything that is written from now on."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def discard(path: Path) -> None:
    """Remove a file, or a folder with all below it; whoever else removes it at the same time is welcome."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ObuildError(f"cannot remove {path}: {error.strerror}") from error
