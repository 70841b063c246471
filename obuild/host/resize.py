"""Grow or shrink a raw disk with its last file system. ext2, ext3 and ext4 need no root and no mount.

xfs and btrfs can only grow, which takes root. An EFI system partition behind that file system stays behind it: it
is moved. A disk with ext gives the same bytes each time. All ids stay, and so does the boot code before the first
partition.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from obuild.errors import ObuildError, ProcessError, UsageError
from obuild.host import fs_size, sfdisk, sparse, units
from obuild.host.blocks import raw_file
from obuild.host.partitions import ESP_TYPE, SECTOR, Partition, kind, partitions

PROGRAMS = (*sfdisk.PROGRAMS, *fs_size.PROGRAMS)

#: What `shrink` leaves free, in bytes: a system that boots writes logs, and makes host keys.
SLACK = 64 << 20

_MIB = 1 << 20

#: The size of the boot code in the first sector; a partition table follows.
_BOOT_CODE = 440

#: Types of an EFI system partition, in a GPT and in an MBR.
_ESP = (ESP_TYPE, "ef")

#: The length of a partition's type in an MBR; in a GPT it is longer.
_MBR_TYPE = 2


class _Layout(NamedTuple):
    """The partition to resize, number 0 if the disk has no table, its file system, and those behind it, by place.

    `end` is what is at the end of the disk, in bytes: a GPT has a copy there.
    """

    end: int
    root: Partition
    kind: str
    behind: tuple[Partition, ...]

    def resized(self, size: int) -> _Layout:
        """The layout on a disk of `size` bytes, in whole MiB: what is behind the root is at the end."""
        end = size - self.end
        behind: list[Partition] = []
        for each in reversed(self.behind):
            start = (end - each.size) // _MIB * _MIB
            behind.insert(0, each._replace(start=start))
            end = start
        return self._replace(root=self.root._replace(size=end - self.root.start), behind=tuple(behind))

    def needs(self, root: int) -> int:
        """The size of a disk whose root has `root` bytes, in whole MiB."""
        rest = self.resized(1 << 60)
        return _whole(root + (1 << 60) - rest.root.size)


def grow(disk: Path, size: int) -> None:
    """Make a raw disk, its last partition and the file system there larger: `size` bytes, up to a whole MiB.

    The disk is replaced as a whole, at the end; in its folder there must be room for two copies of its data.
    UsageError if the disk is larger than `size`, or its last file system cannot be resized here. ObuildError if
    that is damaged.
    """
    old, now, size = _layout(disk), disk.stat().st_size, _whole(size)
    if size < now:
        raise UsageError(f"a disk of {units.size(now)} cannot grow to {units.size(size)}")
    if size > now:
        with _file_system(disk, old) as part:
            part.resize(old.resized(size).root.size)
            _replace(disk, old, old.resized(size), part.path, size)


def shrink(disk: Path) -> None:
    """Make a raw disk, its last partition and the file system there as small as its files allow, and SLACK.

    It is replaced as in `grow`, with the same errors. A disk that would not become smaller stays as it is.
    """
    old = _layout(disk)
    with _file_system(disk, old) as part:
        size = old.needs(part.least() + SLACK)
        if size < disk.stat().st_size:
            part.resize(old.resized(size).root.size)
            _replace(disk, old, old.resized(size), part.path, size)


def _whole(size: int) -> int:
    return -(-size // _MIB) * _MIB


def _layout(disk: Path) -> _Layout:
    """UsageError if the last partition with a file system is not one that can be resized."""
    with raw_file(disk) as blocks:
        places = sorted(partitions(blocks), key=lambda each: each.start)
        behind: list[Partition] = []
        while places and places[-1].type in _ESP:
            behind.insert(0, places.pop())
        if not places:
            raise UsageError("the disk has no partition that can be resized")
        root = places[-1]
        if root.number > 4 and len(root.type) == _MBR_TYPE:
            raise UsageError(f"{root.called} is a logical one, and cannot be resized here")
        found = kind(blocks, root.start)
        fs_size.see(found, root.called)
    return _Layout(_MIB if len(root.type) > _MBR_TYPE else 0, root, found, tuple(behind))


@contextmanager
def _file_system(disk: Path, layout: _Layout) -> Iterator[fs_size.FileSystem]:
    """Yield a copy of a file system, without errors. (resize2fs would cut the disk off behind the original.)"""
    path, root = disk.with_name(f"{disk.name}.part"), layout.root
    try:
        with disk.open("rb") as source, path.open("w+b") as out:
            out.truncate(root.size)
            _copy(source, root.start, root.size, out, 0)
        part = fs_size.opened(layout.kind, path)
        try:
            part.check()
        except ProcessError as error:
            message = f"the file system of {root.called} is damaged: e2fsck cannot repair it by itself"
            raise ObuildError(message) from error
        yield part
    finally:
        path.unlink(missing_ok=True)


def _replace(disk: Path, old: _Layout, new: _Layout, root: Path, size: int) -> None:
    """Replace a disk by one of `size` bytes with another layout, and the file system in `root`."""
    path = disk.with_name(f"{disk.name}.new")
    try:
        with disk.open("rb") as source, root.open("rb") as system, path.open("w+b") as out:
            out.truncate(size)
            _copy(source, 0, old.root.start, out, 0)
            _copy(system, 0, root.stat().st_size, out, new.root.start)
            for before, after in zip(old.behind, new.behind, strict=True):
                _copy(source, before.start, before.size, out, after.start)
        if old.root.number:
            sfdisk.write(path, _changed(sfdisk.script(disk), new))
            with disk.open("rb") as source, path.open("r+b") as out:
                out.write(source.read(_BOOT_CODE))
        path.replace(disk)
    finally:
        path.unlink(missing_ok=True)


def _changed(script: str, new: _Layout) -> str:
    """The table with the new places; it ends where the disk does."""
    for each in (new.root, *new.behind):
        place = f"start={each.start // SECTOR}, size={each.size // SECTOR}"
        line = re.compile(rf"^(.*[^0-9]{each.number} : )start= *[0-9]+, size= *[0-9]+", re.MULTILINE)
        script = line.sub(rf"\g<1>{place}", script)
    return re.sub(r"^(device|last-lba): .*\n", "", script, flags=re.MULTILINE)


def _copy(source: BinaryIO, start: int, size: int, out: BinaryIO, to: int) -> None:
    """Copy a part of a file to where there is a hole in another; what holds nothing but zeros stays one."""
    for begin, stop in sparse.extents(source.fileno(), start):
        for at in range(begin, min(stop, start + size), _MIB):
            data = os.pread(source.fileno(), min(_MIB, stop - at, start + size - at), at)
            if data.strip(b"\0"):
                os.pwrite(out.fileno(), data, to + at - start)
        if stop >= start + size:
            return
