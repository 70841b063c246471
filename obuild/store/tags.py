"""Tags: names that users give to layers. A tag keeps its layer, and all its ancestors, from being removed.

STORE/tags/NAME holds the id of one layer. A process that sets a tag has the layer in use, which excludes removal,
until the file is on the disk; one that removes a layer looks for its tags with the layer locked. So no tagged
layer is removed, and no tag is set on a layer that is gone. Each change of a file here takes the lock of tags
briefly; its holder waits for nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from obuild.errors import UsageError
from obuild.host import failpoints, locks
from obuild.host.fs import discard, fsync, replace_text
from obuild.host.regular import NotAFile, is_file, read_bytes
from obuild.plan.keys import LayerId
from obuild.store import parts

#: The longest name, in characters: even if all are slashes, three bytes each, it must fit into a file name.
LONGEST = 80

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/-]*[A-Za-z0-9])?")
_HEX = re.compile(r"[0-9A-Fa-f]+")


@dataclass(frozen=True, slots=True)
class Tag:
    """A name, its layer, and when it was set, in seconds since the epoch."""

    name: str
    id: LayerId
    set: float


class Tags(NamedTuple):
    """The tags of a store: `folder` has a file for each; `lock` is held to change one."""

    folder: Path
    lock: Path

    def all(self) -> list[Tag]:
        """All tags, by name, without damaged ones."""
        found = []
        for name in self._names():
            with suppress(FileNotFoundError):  # it was just removed
                if id := self.get(name):
                    found.append(Tag(name, id, self.file(name).lstat().st_mtime))
        return found

    def by_layer(self) -> dict[LayerId, list[str]]:
        """The tags of each tagged layer."""
        found: dict[LayerId, list[str]] = {}
        for name in self._names():
            if id := self.get(name):  # else it is damaged, or was just removed
                found.setdefault(id, []).append(name)
        return found

    def get(self, name: str) -> LayerId | None:
        """The layer of a tag, which may not exist; None if there is no such tag, or it is damaged."""
        if not is_name(name):
            return None
        try:
            text = read_bytes(self.file(name)).decode("ascii", "replace")
        except (FileNotFoundError, NotADirectoryError, NotAFile):
            return None
        id = text.removesuffix("\n")
        return LayerId(id) if parts.ID.fullmatch(id) else None

    def put(self, name: str, id: LayerId) -> None:
        """Set the tag `name` to the layer `id`, which the caller has in use, replacing any other."""
        self.folder.mkdir(exist_ok=True)
        with locks.file_lock(self.lock):
            replace_text(self.file(name), f"{id}\n", durable=True, point="tag.writing")
        fsync(self.folder.parent)
        failpoints.reach("tag.set")

    def is_there(self, name: str) -> bool:
        """Whether there is a tag with this name, even if damaged."""
        return is_name(name) and is_file(self.file(name))

    def remove(self, name: str, *, unless: Callable[[LayerId], bool] = lambda id: False) -> bool:
        """Remove a tag; its layer stays. False if there is none, or if `unless` returns True for its layer."""
        with locks.file_lock(self.lock):
            id = self.get(name)
            return self.is_there(name) and not (id and unless(id)) and self._remove(name)

    def untag(self, id: LayerId) -> None:
        """Remove all tags of a layer, which the caller has locked, so that no other tag can be set meanwhile."""
        with locks.file_lock(self.lock):
            for name in self.by_layer().get(id, ()):
                self._remove(name)

    def _remove(self, name: str) -> bool:
        self.file(name).unlink(missing_ok=True)
        fsync(self.folder)
        failpoints.reach("tag.removed")
        return True

    def sweep(self) -> None:
        """Remove the unfinished files of processes that died while they wrote a tag."""
        if names := self._unfinished():
            with locks.file_lock(self.lock, wait=False) as free:
                for name in names if free else ():
                    discard(self.folder / name)

    def file(self, name: str) -> Path:
        """The path of a tag's file, which may not exist."""
        return self.folder / name.replace("/", "%2F")

    def name(self, file: Path) -> str:
        """The name of the tag in `file`."""
        return file.name.replace("%2F", "/")

    def _names(self) -> list[str]:
        found = (name for name in self._listed() if parts.TAG.fullmatch(name) and is_file(self.folder / name))
        return sorted(self.name(self.folder / name) for name in found)

    def _unfinished(self) -> list[str]:
        return [name for name in self._listed() if parts.NEW_TAG.fullmatch(name)]

    def _listed(self) -> list[str]:
        with suppress(FileNotFoundError):
            return os.listdir(self.folder)
        return []


def could_be_id(name: str) -> bool:
    """Whether a name is read as an id, or its first digits, and so cannot be a tag."""
    return _HEX.fullmatch(name) is not None


def is_name(name: str) -> bool:
    """Whether a name is valid for a tag."""
    return len(name) <= LONGEST and not could_be_id(name) and _NAME.fullmatch(name) is not None


def checked(name: str) -> str:
    """The unchanged name, if it is valid for a tag. UsageError otherwise."""
    if could_be_id(name):
        raise UsageError(f"the tag {name!r} looks like an id", hint="add a letter after f, or a dash")
    if len(name) > LONGEST:
        raise UsageError(f"a tag can have at most {LONGEST} characters, and this one has {len(name)}")
    if not is_name(name):
        raise UsageError(
            f"{name!r} is not a valid tag",
            hint="use only letters, digits and . _ - : /, with a letter or a digit at both ends",
        )
    return name
