"""Disk space: what uses it, and how a build keeps enough of it free."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from obuild.errors import StoreError
from obuild.events import Teller
from obuild.host import locks, units
from obuild.store import gc, usage
from obuild.store.layers import Store


@dataclass(frozen=True, slots=True)
class Part:
    """The items of one kind. `size` is in bytes on disk."""

    what: str
    count: int
    size: int


@dataclass(frozen=True, slots=True)
class Usage:
    """The disk usage of a store, in bytes. `free` and `capacity` are those of its file system."""

    parts: tuple[Part, ...]
    total: int
    free: int
    capacity: int


def look(store: Store) -> Usage:
    """The disk usage of a store by kind."""
    kinds = ("layer", "cache", *(["download"] if store.downloads.folder.is_dir() else []))
    parts = (
        _base_images(store),
        *(_part(f"{kind}s", gc.STOCK[kind].find(store, time.time())) for kind in kinds),
        *_unfinished(store),
        *_folders(store, "warm states", "flattened layers", "images to publish", "tags"),
        Part("state", 1, usage.on_disk(store.state)),
    )
    disk = shutil.disk_usage(store.root)
    return Usage(parts, sum(part.size for part in parts), disk.free, disk.total)


def _base_images(store: Store) -> Part:
    """Base images; their cards and kernels count only in bytes."""
    images = [name for name in os.listdir(store.base_image) if name.endswith((".qcow2", ".img"))]
    return Part("base images", sum(name[0] != "." for name in images), usage.on_disk(store.base_image))


def _part(what: str, items: Iterable[gc.Item]) -> Part:
    sizes = [item.size for item in items]
    return Part(what, len(sizes), sum(sizes))


def _unfinished(store: Store) -> tuple[Part, Part]:
    """What builds are writing, and what nobody owns any more."""
    used: list[int] = []
    rubbish: list[int] = []
    for path in store.unfinished():
        size = usage.on_disk(path)
        (rubbish if store.is_rubbish(path) else used).append(size)
    return Part("in the making", len(used), sum(used)), Part("rubbish", len(rubbish), sum(rubbish))


def _folders(store: Store, *kinds: str) -> list[Part]:
    """Kinds that not every store has. A folder that only another user may read counts as empty."""
    found = []
    for kind in kinds:
        path = store.root / usage.FOLDERS[kind]
        with suppress(FileNotFoundError, PermissionError):
            found.append(Part(kind, len(os.listdir(path)), usage.on_disk(path)))
    return found


@dataclass(frozen=True, slots=True)
class Room:
    """Frees space before a step, so that the disk and the store stay within their limits.

    At least `reserve` bytes of the file system must be free, and the whole store must take at most `max_size`
    bytes, unless that is None.
    """

    store: Store
    reserve: int = 0
    max_size: int | None = None

    def make(self, tell: Teller) -> None:
        """Remove the least recently used items if needed; `tell` gets a note of how much was removed.

        What builds need stays. StoreError if that is not enough; if that can be foreseen, nothing is removed.
        The caller may hold claims and layers: this waits for nothing that could deadlock with them.
        """
        if self._missing() <= 0:
            return
        with locks.file_lock(
            self.store.locks / "room.lock"
        ):  # one at a time: another process may free enough for us, too
            while (missing := self._missing()) > 0:
                plan = gc.plan(self.store, now=time.time(), free_bytes=missing)
                gone: list[gc.Item] = []
                if not plan.short:
                    gc.carry_out(self.store, plan, gone.append)
                if not gone:
                    raise self._no_room()
                tell.note(f"removed {_words(gone)}, to make room for the next step")
                if self._missing() > 0:
                    os.sync()  # some file systems report freed space only then

    def _missing(self) -> int:
        """How many bytes must be freed."""
        missing = self.reserve - shutil.disk_usage(self.store.root).free
        if self.max_size is not None:
            missing = max(missing, look(self.store).total - self.max_size)
        return missing

    def _no_room(self) -> StoreError:
        free = shutil.disk_usage(self.store.root).free
        reasons = []
        if free < self.reserve:
            reasons.append(f"{units.size(free)} are free, and --reserve asks for {units.size(self.reserve)}")
        if self.max_size is not None and (total := look(self.store).total) > self.max_size:
            reasons.append(f"it takes {units.size(total)}, and --max-size allows {units.size(self.max_size)}")
        return StoreError(
            f"no room for the next step in the store {self.store.root}: {'; '.join(reasons)}",
            hint=f"in the store: {usage.in_words(self.store.root)}; removing all that is not in use is not enough",
        )


def _words(gone: Sequence[gc.Item]) -> str:
    """`2 layers and 1 cache, 1.2 GiB`."""
    counts = Counter(gc.KINDS[item.kind].noun for item in gone)
    named = " and ".join(units.count(number, noun) for noun, number in counts.items())
    return f"{named}, {units.size(sum(item.size for item in gone))}"
