"""The caches of a command: folders on the host that its container mounts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from obuild.errors import MachineError
from obuild.events import Phase, Teller
from obuild.executors import transfer
from obuild.executors.native.container import Bind
from obuild.executors.native.guest_path import Places
from obuild.executors.native.line import Line
from obuild.guests import linux
from obuild.host.fs import discard
from obuild.plan.steps import Command

#: Where a container that packs or unpacks a cache has its folder.
_PLACE = "/run/cache"


@dataclass(frozen=True, slots=True)
class Volumes:
    """The open caches of a command. `folder` is on the store's file system, and ours alone."""

    folder: Path
    line: Line

    @contextmanager
    def opened(
        self, command: Command, archives: Sequence[Path], places: Places, tell: Teller
    ) -> Iterator[tuple[list[Bind], Callable[[], tuple[Path, ...]]]]:
        """What to mount for the caches of a command, and what packs them when it has ended."""
        uid, gid = linux.ids(command.user)
        binds: list[Bind] = []
        try:
            for slot, (cache, archive) in enumerate(zip(command.caches, archives, strict=True)):
                folder = self.folder / str(slot)
                folder.mkdir()
                os.chown(folder, uid, gid)
                target = places.resolve(cache.target)
                binds.append(Bind(folder, target))
                if target == "/":
                    why = f"{cache.target} is the root of the guest"
                    raise MachineError(f"mounting cache {cache.name} failed in the guest: {why}")
                if archive.exists():
                    with tell.phase("sending", cache.name, archive.stat().st_size) as phase:
                        self._unpack(folder, archive, phase, f"unpacking cache {cache.name}")
                places.ensure_folder(target, uid, gid)
                places.mount(target, folder)
            yield binds, partial(self._pack, command, archives, binds, tell)
        finally:
            for bind in binds:
                places.unmount(bind.source)
                discard(bind.source)

    def _unpack(self, folder: Path, archive: Path, phase: Phase, what: str) -> None:
        line = self.line.mounting([Bind(folder, _PLACE)])
        line.stream(linux.unpack_command(_PLACE), partial(transfer.write_file, archive, phase), what=what)

    def _pack(
        self, command: Command, archives: Sequence[Path], binds: Sequence[Bind], tell: Teller
    ) -> tuple[Path, ...]:
        packed = []
        for cache, archive, bind in zip(command.caches, archives, binds, strict=True):
            new = archive.with_suffix(".new")
            line = self.line.mounting([Bind(bind.source, _PLACE)])
            with tell.phase("fetching", cache.name) as phase, new.open("wb") as file:
                out = transfer.Counted(file, phase)
                line.fetch(linux.pack_command(_PLACE), b"", out, what=f"packing cache {cache.name}")
            packed.append(new)
        return tuple(packed)
