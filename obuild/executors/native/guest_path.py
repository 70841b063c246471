"""Paths of a guest, followed by us: never through a symlink to a file of the host.

No process of the guest runs meanwhile, so nothing changes between two looks.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obuild.errors import MachineError
from obuild.host.trees.nodes import MOST_LINKS


class Places:
    """The folders of the host that make up a guest's file system: its root, and what is mounted in it.

    A place in `hidden` is made anew for each container: nothing can be looked up there.
    """

    def __init__(self, root: Path, hidden: tuple[str, ...] = ()) -> None:
        self._mounts: list[tuple[str, Path | None]] = [("/", root), *((path, None) for path in hidden)]

    def mount(self, path: str, folder: Path) -> None:
        """Mount a folder of the host at a resolved path."""
        self._mounts.append((path, folder))

    def unmount(self, folder: Path) -> None:
        """Undo `mount`."""
        self._mounts = [(top, place) for top, place in self._mounts if place != folder]

    def host(self, path: str) -> Path | None:
        """Where a resolved path is on the host; None if it is in a hidden place."""
        for top, folder in reversed(self._mounts):
            prefix = top.rstrip("/")
            if path == top or path.startswith(f"{prefix}/"):
                return folder / path[len(prefix) + 1 :] if folder is not None else None
        raise ValueError(f"{path} is not absolute")

    def resolve(self, path: str) -> str:
        """The path without symlinks; parts that do not exist stay. MachineError if there are too many symlinks."""
        left = path.split("/")[::-1]
        found: list[str] = []
        links = 0
        while left:
            name = left.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del found[-1:]
                continue
            here = "/" + "/".join((*found, name))
            place = self.host(here)
            if place is None or not place.is_symlink():
                found.append(name)
                continue
            links += 1
            if links > MOST_LINKS:
                raise MachineError(f"{path} has too many levels of symbolic links")
            target = str(place.readlink())
            if target.startswith("/"):
                found.clear()
            left += target.split("/")[::-1]
        return "/" + "/".join(found)

    def ensure_folder(self, path: str, uid: int, gid: int) -> list[Path]:
        """Make the folder at a resolved path and its missing parents, with this owner; returns what was made.

        MachineError if something else is in the way.
        """
        made: list[Path] = []
        parts = path.strip("/").split("/") if path != "/" else []
        for count in range(1, len(parts) + 1):
            place = self.host("/" + "/".join(parts[:count]))
            if place is None:
                continue  # the container makes it
            try:
                with writing(path):
                    place.mkdir()
            except FileExistsError:
                if not stat.S_ISDIR(place.lstat().st_mode):
                    raise MachineError(
                        f"{path} cannot be made in the guest: a part of it is not a folder"
                    ) from None
                continue
            os.chown(place, uid, gid)
            made.append(place)
        return made


@contextmanager
def writing(path: str) -> Iterator[None]:
    """MachineError, which names the guest's path, if its file system refuses something, as a full one does."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        hint = "its disk is full: obuild base resize NAME SIZE" if error.errno == errno.ENOSPC else ""
        raise MachineError(f"{path} cannot be written in the guest: {error.strerror}", hint=hint) from error
