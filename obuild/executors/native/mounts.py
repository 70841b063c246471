"""The file systems of a draft's disk, mounted as its guest would."""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from obuild.errors import MachineError, ObuildError, ProcessError, UsageError
from obuild.executors.native.guest_path import Places
from obuild.executors.native.namespace import Namespace
from obuild.host.blocks import Blocks, raw_file
from obuild.host.partitions import MOUNT_OPTIONS, Partition, kind_of, partitions
from obuild.host.trees import file_systems
from obuild.host.trees import root as trees
from obuild.host.trees.ext import superblock

#: How long a file system may stay busy after the last process has ended, in seconds.
_BUSY_TIMEOUT = 30.0
_BUSY_PAUSE = 0.002

#: nodev: a device file of the guest must not be one of ours. From linux/mount.h.
_MS_RDONLY, _MS_NODEV, _MS_NOATIME = 1, 4, 1024
_FLAGS = _MS_NODEV | _MS_NOATIME

#: Where packages are installed. Under these, a step must not write to a folder that a mount will hide.
_SYSTEM = ("bin", "boot", "boot/efi", "etc", "lib", "lib64", "opt", "sbin", "usr", "var", "var/lib")

_TYPES = {"ext": "ext4"}


@dataclass(frozen=True, slots=True)
class Mounts:
    """What is mounted, the root first. `root` is the folder of the guest's root, inside the namespace.

    `absent` has the folders and the devices of what the guest's fstab mounts, and this disk does not have.
    """

    namespace: Namespace
    disk: Path
    root: Path
    points: tuple[tuple[Partition, Path], ...]
    absent: tuple[tuple[str, str], ...] = ()

    def open(self) -> None:
        """Allow writing. MachineError if the kernel refuses."""
        for _, point in self.points:
            try:
                self.namespace.remount(point, _FLAGS)
            except OSError as error:
                raise MachineError(f"the draft's file system cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Complete all file systems on the disk, as unmounting them would, and refuse writes from now on.

        MachineError if the disk could not be written, or if a file system is damaged.
        """
        for _, point in reversed(self.points):
            self._read_only(point)
        with raw_file(self.namespace.path(self.disk)) as disk:
            for part, _ in self.points:
                see_errors(disk, part)

    def unmount(self) -> None:
        """Unmount them. Else the kernel does, but waits for a disk that is gone."""
        for _, point in reversed(self.points):
            with suppress(OSError):
                self.namespace.unmount(point)

    def _read_only(self, point: Path) -> None:
        deadline = time.monotonic() + _BUSY_TIMEOUT
        while True:
            try:
                self.namespace.remount(point, _FLAGS | _MS_RDONLY)
                return
            except OSError as error:
                # The kernel closes the last files of a process a moment after it has gone.
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise MachineError(f"the draft's file system cannot be completed: {error.strerror}") from error
                time.sleep(_BUSY_PAUSE)


def see_errors(disk: Blocks, part: Partition) -> None:
    """MachineError if fsck would repair a file system."""
    if kind_of(disk, part) != "ext":
        return
    state = superblock.read(disk, part.start)
    why = "has errors" if state.damaged else "was not unmounted and has no journal" if state.unsure else ""
    if why:
        raise MachineError(
            f"the file system on {part.called} {why}",
            hint="`obuild shell` with --store=qemu:… can look at it; e2fsck repairs it",
        )


def mount(namespace: Namespace, disk: Path, top: Path) -> Mounts:
    """Mount what is on the raw `disk` at the empty folder `top`; both are paths inside the namespace.

    UsageError if there is no root file system of Linux, or more than one, or if a part of the system is not on
    this disk. MachineError if a file system is damaged.
    """
    with raw_file(namespace.path(disk)) as blocks:
        _replay(namespace, disk, blocks, top)
        layout = trees.layout(blocks)
        _see_complete(layout.absent)
        points = [(layout.root, top)]
        _mount(namespace, disk, blocks, layout.root, top)
        place = top / layout.top
        places = Places(namespace.path(place))
        others = {path: (part, "") for path, part in layout.others.items()}
        others |= {path: (layout.root, f",{option}") for path, option in layout.subvolumes.items()}
        for path in sorted(others):  # a folder before those in it
            part, option = others[path]
            point = Path(f"{place}{places.resolve(path)}")
            _mount(namespace, disk, blocks, part, point, option)
            points.append((part, point))
    return Mounts(namespace, disk, place, tuple(points), tuple(layout.absent.items()))


def _see_complete(absent: dict[str, str]) -> None:
    for path in filter(absent.get, _SYSTEM):
        raise UsageError(
            f"the guest's fstab mounts /{path} from {absent[path]}, which is not on its disk",
            hint="that would hide what a step installs there; if the guest can do without it, add nofail",
        )


def _replay(namespace: Namespace, disk: Path, blocks: Blocks, top: Path) -> None:
    """Mount every file system that was not unmounted: the kernel brings its files up to date from its journal."""
    for part in partitions(blocks):
        if file_systems.unfinished(blocks, part, kind_of(blocks, part)):
            _mount(namespace, disk, blocks, part, top)
            namespace.unmount(top)


def _mount(
    namespace: Namespace, disk: Path, blocks: Blocks, part: Partition, point: Path, option: str = ""
) -> None:
    see_errors(blocks, part)
    name = kind_of(blocks, part)
    # The loop device goes with the mount.
    where = f"loop,offset={part.start},sizelimit={part.size}"
    options = ",".join((where, "nodev", "noatime", *MOUNT_OPTIONS.get(name, ()))) + option
    try:
        namespace.run(["mount", "-t", _TYPES.get(name, name), "-o", options, disk, point])
    except ProcessError as error:
        known = Path("/proc/filesystems").read_text().split()
        hint = "" if name in ("ext", *known) else f"this host's kernel has no {name}: modprobe {name}"
        raise ObuildError(f"{part.called} cannot be mounted: {error.message}", hint=hint) from error
