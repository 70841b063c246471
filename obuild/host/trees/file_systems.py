"""The kinds of file systems whose files are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

from obuild.errors import ObuildError, UsageError
from obuild.host.blocks import Blocks
from obuild.host.partitions import Partition
from obuild.host.trees.btrfs.files import Btrfs
from obuild.host.trees.btrfs.volume import Volume
from obuild.host.trees.damage import Unfinished
from obuild.host.trees.ext.files import Ext
from obuild.host.trees.fat import Fat
from obuild.host.trees.fstab import Names
from obuild.host.trees.nodes import FileSystem, decode
from obuild.host.trees.xfs.files import Xfs

#: Those that a Linux system has its root on, and those that it may mount besides.
ROOTS = ("ext", "xfs", "btrfs")
KINDS = (*ROOTS, "vfat")

#: Where a file system has its UUID (16 bytes) and its label, and the length of that.
_NAMES = {"ext": (1024 + 104, 1024 + 120, 16), "xfs": (32, 108, 12), "btrfs": (0x10020, 0x1012B, 256)}


class Opened(NamedTuple):
    """A file system; of btrfs, it is the subvolume with the root.

    `top` is the path of that in what is mounted without options. `subvolume` returns the one that an option of
    mount(8) chooses, with the errors of `Btrfs.chosen`.
    """

    files: FileSystem
    top: str = ""
    subvolume: Callable[[str], FileSystem] | None = None


def opened(disk: Blocks, part: Partition, kind: str) -> Opened:
    """The file system of a partition. UsageError, which names the partition, if it cannot be read here."""
    try:
        match kind:
            case "vfat":
                return Opened(Fat(disk, part.start))
            case "xfs":
                return Opened(Xfs(disk, part.start))
            case "btrfs":
                system = Btrfs(Volume(disk, part.start))
                top, files = system.with_root()
                return Opened(files, top, system.chosen)
        return Opened(Ext(disk, part.start))
    except Unfinished as error:
        raise Unfinished(part.called) from error
    except UsageError as error:
        raise UsageError(f"{part.called}: {error.message}", hint=error.hint) from error


def unfinished(disk: Blocks, part: Partition, kind: str) -> bool:
    """Whether the file system of a partition needs its journal: the kernel brings its files up to date."""
    if kind not in ROOTS:
        return False
    try:
        opened(disk, part, kind)
    except Unfinished:
        return True
    except ObuildError:  # whoever wants its files is told
        return False
    return False


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
