"""Runs the steps of a chain on one disk that stays mounted: each step's overlay is put on top of the last one.

Between two steps the file systems are read-only and complete, every process of the step has ended, and all that
was mounted or made for it is gone: what a step leaves is on disk, as after a shutdown.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from obuild.errors import MachineError, ObuildError
from obuild.events import SILENT, Teller
from obuild.executors import overlay
from obuild.executors.native import container, mounts, namespace, storage
from obuild.executors.native.guest_path import Places
from obuild.executors.native.line import Line
from obuild.executors.native.mounts import Mounts
from obuild.executors.native.session import Session
from obuild.executors.native.storage import Storage
from obuild.executors.native.volumes import Volumes
from obuild.host import failpoints, qemu_img
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.store.layers import Draft, Store

#: A store with less free space than this, in bytes, is full: a step that failed there has failed because of it.
LEAST_FREE = 1 << 20


@dataclass(frozen=True, slots=True)
class Config:
    """How to run steps: the container runtime, and the limits of each step. All processes belong to `scope`."""

    store: Store
    runtime: str
    limits: container.Limits
    scope: CancelScope


@dataclass
class _Place:
    """A mounted disk of `size` bytes. `folder` is ours on the host.

    Between steps, the disk stands on `layer`, and `top` is its overlay for the next step.
    """

    folder: Path
    line: Line
    mounts: Mounts
    storage: Storage
    size: int
    top: Path
    layer: LayerId | None = None


@dataclass
class Chain:
    """Runs the steps of a chain, one at a time."""

    config: Config
    _open: ExitStack = field(default_factory=ExitStack)  # owns the place
    _place: _Place | None = None

    @contextmanager
    def open(self, draft: Draft, *, network: bool, tell: Teller = SILENT) -> Iterator[Session]:
        """As the protocol says."""
        try:
            with tell.phase("mounting"):
                place = self._continued(draft) or self._mounted(draft, tell)
                folder = place.mounts.namespace.path(place.mounts.root)
                places = Places(folder, container.FRESH)
                line = replace(place.line, network=network, hostname=_hostname(places))
                failpoints.reach("native.mounted")
            end = partial(self._finish, place, draft)
            yield Session(line, places, Volumes(self.config.store.caches, line, tell), tell, end)
            if draft.scratch:
                self.close()
                return
            with tell.phase("sealing"):
                self._seal(place, draft)
        except BaseException as error:
            full = shutil.disk_usage(self.config.store.root).free < LEAST_FREE
            self.close()
            if isinstance(error, MachineError):
                self.config.scope.check()
            # The guest's kernel only sees a disk that cannot be written.
            if full and isinstance(error, ObuildError):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise

    def close(self) -> None:
        """End everything: the layers are complete, and nothing else is needed any more."""
        self._place = None
        self._open.pop_all().close()

    def _continued(self, draft: Draft) -> _Place | None:
        """The disk of the step before, if this draft stands on its layer."""
        place = self._place
        if place is None or not overlay.stands_on(draft, place.layer):
            return None
        os.link(place.top, draft.image)
        place.layer = None
        place.mounts.open()
        return place

    def _mounted(self, draft: Draft, tell: Teller) -> _Place:
        """Mount the disk of a draft."""
        self.close()
        container.sweep()
        with ExitStack() as stack:
            folder = stack.enter_context(self.config.store.chain_folder()).absolute()
            for name in ("run", "storage", "disks"):
                (folder / name).mkdir(mode=0o700)
            draft.lay()
            inside = stack.enter_context(namespace.opened(self.config.scope))
            container.prepare(inside, self.config.runtime)
            work = folder / "run"
            inside.mount_memory(work)
            inside.path(work / "root").mkdir()
            served = stack.enter_context(storage.opened(inside, draft.image.absolute(), folder / "storage"))
            points = mounts.mount(inside, folder / "storage" / storage.DISK, work / "root")
            stack.callback(points.unmount)
            for path, device in points.absent:
                tell.note(
                    f"fstab mounts /{path} from {device}, which is not on its disk: steps use the folder itself"
                )
            line = Line(inside, points.root, work, self.config.runtime, self.config.limits)
            size = qemu_img.virtual_size(draft.image)
            place = _Place(folder, line, points, served, size, folder / "disks" / "none")
            self._open = stack.pop_all()
        self._place = place
        return place

    def _finish(self, place: _Place, draft: Draft) -> None:
        """Complete the image of a scratch draft, and end everything."""
        place.mounts.close()
        self._put(place, "end", str(draft.image))
        self.close()

    def _seal(self, place: _Place, draft: Draft) -> None:
        """Complete the draft's image, and put the overlay for the next step on it."""
        place.mounts.close()
        failpoints.reach("native.unmounted")
        top = self._put(place, draft.id, overlay.image_of(draft.id))
        place.top.unlink(missing_ok=True)  # the layer has it now, under its own name
        place.top = top
        place.layer = draft.id
        failpoints.reach("native.sealed")

    def _put(self, place: _Place, name: str, backing: str) -> Path:
        """Put a new overlay on top of the disk, whose image is `backing`, as seen from the overlay."""
        path = place.folder / "disks" / f"{name}.qcow2"
        qemu_img.create_overlay(path, backing, size=place.size)
        place.storage.put(path)
        return path


def _hostname(places: Places) -> str:
    """The guest's own name."""
    file = places.host(places.resolve("/etc/hostname"))
    if file is None or not file.is_file():
        return "obuild"
    with file.open("rb") as text:
        name = text.read(64).split(b"\n")[0].decode("ascii", "replace").strip()
    return name if name.replace("-", "").replace(".", "").isalnum() and name.isascii() else "obuild"
