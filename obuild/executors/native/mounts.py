"""The file systems of a draft's disk, mounted as its guest would."""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from obuild.errors import MachineError, ObuildError, ProcessError
from obuild.executors.native.guest_path import Places
from obuild.executors.native.namespace import Namespace
from obuild.host.blocks import Blocks, raw_file
from obuild.host.partitions import Partition, kind
from obuild.host.trees import root as trees
from obuild.host.trees.mounted import root_in

#: How long a file system may stay busy after the last process has ended, in seconds.
_BUSY_TIMEOUT = 30.0
_BUSY_PAUSE = 0.002

#: nodev: a device file of the guest must not be one of ours. From linux/mount.h.
_MS_RDONLY, _MS_NODEV, _MS_NOATIME = 1, 4, 1024
_FLAGS = _MS_NODEV | _MS_NOATIME

_TYPES = {"ext": "ext4"}
_OPTIONS = {"xfs": ",nouuid"}

#: Where an ext file system has its state, and the flag there which says that it has errors.
_STATE_AT, _ERRORS = 1024 + 58, 2


@dataclass(frozen=True, slots=True)
class Mounts:
    """What is mounted, the root first. `root` is the folder of the guest's root, inside the namespace."""

    namespace: Namespace
    disk: Path
    root: Path
    points: tuple[tuple[Partition, Path], ...]

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
    """MachineError if the kernel has found an ext file system damaged, so that fsck would repair it."""
    if kind(disk, part.start) == "ext" and disk.read(part.start + _STATE_AT, 1)[0] & _ERRORS:
        raise MachineError(
            f"the file system on {part.called} has errors",
            hint="`obuild shell` with --store=qemu:… can look at it; e2fsck repairs it",
        )


def mount(namespace: Namespace, disk: Path, top: Path) -> Mounts:
    """Mount what is on the raw `disk` at the empty folder `top`; both are paths inside the namespace.

    UsageError if there is no root file system of Linux, or more than one. MachineError if one is damaged.
    """
    with raw_file(namespace.path(disk)) as blocks:
        root, others = trees.layout(blocks)
        points = [(root, top)]
        _mount(namespace, disk, blocks, root, top)
        place = top / root_in(namespace.path(top))
        places = Places(namespace.path(place))
        for path, part in others.items():
            point = Path(f"{place}{places.resolve(path)}")
            _mount(namespace, disk, blocks, part, point)
            points.append((part, point))
    return Mounts(namespace, disk, place, tuple(points))


def _mount(namespace: Namespace, disk: Path, blocks: Blocks, part: Partition, point: Path) -> None:
    see_errors(blocks, part)
    name = kind(blocks, part.start)
    # The loop device goes with the mount.
    options = f"loop,offset={part.start},sizelimit={part.size},nodev,noatime{_OPTIONS.get(name, '')}"
    try:
        namespace.run(["mount", "-t", _TYPES.get(name, name), "-o", options, disk, point])
    except ProcessError as error:
        raise ObuildError(f"{part.called} cannot be mounted: {error.message}") from error
