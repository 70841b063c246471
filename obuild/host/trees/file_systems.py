"""The kinds of file systems whose files are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from obuild.errors import UsageError
from obuild.host.blocks import Blocks
from obuild.host.partitions import MOUNT_OPTIONS, Partition
from obuild.host.trees import mounted
from obuild.host.trees.ext.files import Ext
from obuild.host.trees.fat import Fat
from obuild.host.trees.fstab import Names
from obuild.host.trees.nodes import FileSystem, decode

#: Those that a Linux system has its root on, and those that it may mount besides.
ROOTS = ("ext", "xfs", "btrfs")
KINDS = (*ROOTS, "vfat")

#: Where a file system has its UUID (16 bytes) and its label, and the length of that.
_NAMES = {"ext": (1024 + 104, 1024 + 120, 16), "xfs": (32, 108, 12), "btrfs": (0x10020, 0x1012B, 256)}


@contextmanager
def opened(disk: Blocks, part: Partition, kind: str) -> Iterator[FileSystem]:
    """The file system of a partition. UsageError, which names the partition, if it cannot be read here."""
    if kind in MOUNT_OPTIONS:
        with mounted.mounted(disk, part, kind) as folder:
            yield folder
        return
    if kind == "vfat":
        yield Fat(disk, part.start)
        return
    try:
        system = Ext(disk, part.start)
    except UsageError as error:
        raise UsageError(f"{part.called}: {error.message}", hint=error.hint) from error
    yield system


def names(disk: Blocks, part: Partition, kind: str) -> Names:
    """What the file system of a partition is called."""
    if kind == "vfat":
        return _fat_names(disk.read(part.start, 512))
    uuid, label, length = _NAMES[kind]
    text = decode(disk.read(part.start + label, length).partition(b"\0")[0])
    return Names(str(UUID(bytes=disk.read(part.start + uuid, 16))), text)


def _fat_names(head: bytes) -> Names:
    at = 67 if head[82:87] == b"FAT32" else 39
    number = head[at : at + 4][::-1].hex().upper()
    return Names(f"{number[:4]}-{number[4:]}", head[at + 4 : at + 15].decode("cp437").rstrip())
