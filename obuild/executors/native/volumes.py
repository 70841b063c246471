"""The caches of a command: folders on the host that its container mounts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from obuild.errors import MachineError
from obuild.events import Teller
from obuild.executors import transfer
from obuild.executors.native.container import Bind
from obuild.executors.native.guest_path import Places
from obuild.executors.native.line import Line
from obuild.guests import linux
from obuild.plan.steps import Command
from obuild.store import unpacked
from obuild.store.caches import Caches, same_content

#: Where a container that packs or unpacks a cache has its folder.
_PLACE = "/run/cache"


class _Volume(NamedTuple):
    """An open cache: our archive of it, its tree, and the state of the tree before the command runs."""

    name: str
    archive: Path
    tree: Path
    state: unpacked.State | None


class Volumes(NamedTuple):
    """Opens caches. Their trees are beside their archives, which are ours alone."""

    caches: Caches
    line: Line
    tell: Teller

    @contextmanager
    def opened(
        self, command: Command, archives: Sequence[Path], places: Places
    ) -> Iterator[tuple[list[Bind], Callable[[], tuple[Path, ...]]]]:
        """What to mount for the caches of a command, and what packs them when it has ended.

        A cache that has not changed is not packed: its archive is the one that came.
        """
        owner = linux.ids(command.user)
        binds: list[Bind] = []
        volumes: list[_Volume] = []
        try:
            for cache, archive in zip(command.caches, archives, strict=True):
                target = places.resolve(cache.target)
                if target == "/":
                    why = f"{cache.target} is the root of the guest"
                    raise MachineError(f"mounting cache {cache.name} failed in the guest: {why}")
                volumes.append(self._volume(cache.name, archive.absolute(), owner))
                binds.append(Bind(volumes[-1].tree, target))
                places.ensure_folder(target, *owner)
                places.mount(target, volumes[-1].tree)
            yield binds, lambda: tuple(map(self._packed, volumes))
        finally:
            for volume in volumes:
                places.unmount(volume.tree)

    def _volume(self, name: str, archive: Path, owner: tuple[int, int]) -> _Volume:
        """The tree that the last step has left, or one that is unpacked now."""
        with self.caches.hold(name) as master:
            state = unpacked.take(master, archive)
        tree = unpacked.tree_of(archive)
        if state is None:
            unpacked.make(archive)
            os.chown(tree, *owner)
            if archive.exists():
                self._unpack(name, archive, tree)
                state = unpacked.look(tree)
        return _Volume(name, archive, tree, state)

    def _unpack(self, name: str, archive: Path, tree: Path) -> None:
        line = self.line.mounting([Bind(tree, _PLACE)])
        with self.tell.phase("sending", name, archive.stat().st_size) as phase:
            send = partial(transfer.write_file, archive, phase)
            line.stream(linux.unpack_command(_PLACE), send, what=f"unpacking cache {name}")

    def _packed(self, volume: _Volume) -> Path:
        """An archive of a cache after the command, with which its tree is labelled."""
        state = unpacked.look(volume.tree)
        archive = volume.archive
        if state is None or state != volume.state:
            archive = self._pack(volume)
            if volume.archive.exists() and same_content(volume.archive, archive):
                archive.unlink()
                archive = volume.archive
        if state is not None:
            unpacked.label(volume.tree.parent, archive, state)
        return archive

    def _pack(self, volume: _Volume) -> Path:
        new = volume.archive.with_suffix(".new")
        line = self.line.mounting([Bind(volume.tree, _PLACE)])
        with self.tell.phase("fetching", volume.name) as phase, new.open("wb") as file:
            out = transfer.Counted(file, phase)
            line.fetch(linux.pack_command(_PLACE), b"", out, what=f"packing cache {volume.name}")
        return new
