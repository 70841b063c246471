"""Find the root file system of a disk, and what it mounts, as one tree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from obuild.errors import UsageError
from obuild.host.blocks import Blocks, raw_file
from obuild.host.partitions import ROOT_TYPES, Partition, kind_of, partitions
from obuild.host.trees import file_systems, fstab
from obuild.host.trees.file_systems import Opened
from obuild.host.trees.nodes import FileSystem, Tree, decode

_HINTS = {
    "LUKS": "encrypted disks are not opened",
    "BitLocker": "encrypted disks are not opened",
    "LVM": "logical volumes are not read: give the root a partition of its own",
    "linux_raid_member": "RAID is not read",
}


@contextmanager
def of_raw(path: Path) -> Iterator[Tree]:
    """As `of_disk`, for a raw disk in a file."""
    with raw_file(path) as disk:
        yield of_disk(disk)


def of_disk(disk: Blocks) -> Tree:
    """The tree of a disk: its root file system, and on it those that its fstab mounts from the same disk.

    UsageError if there is no root file system of Linux, more than one, or one that cannot be read here; it says
    what there is. ObuildError if one is damaged.
    """
    kinds, part, root = _open_root(disk)
    table, mounts = _fstab(root.files), {"": root.files}
    for path, other in _others(disk, kinds, part, table).items():
        mounts[path] = file_systems.opened(disk, other, kinds[other]).files
    if root.subvolume is not None:
        own = file_systems.names(disk, part, kinds[part])
        for path, option in fstab.subvolumes(table, part, own).items():
            mounts[path] = root.subvolume(option)
    return Tree(mounts)


class Layout(NamedTuple):
    """The partition of the root file system, and what its fstab mounts, by path.

    `top` is the path of the root in what is mounted without options: not "" if it is a subvolume. `others` are
    other partitions, and `subvolumes` are of the root's own, each with the option of mount(8) that chooses it.
    `absent` has the devices that the disk lacks.
    """

    root: Partition
    top: str
    others: dict[str, Partition]
    subvolumes: dict[str, str]
    absent: dict[str, str]


def layout(disk: Blocks) -> Layout:
    """Where everything is. Errors as for `of_disk`."""
    kinds, part, root = _open_root(disk)
    table, own = _fstab(root.files), file_systems.names(disk, part, kinds[part])
    return Layout(
        part,
        root.top,
        _others(disk, kinds, part, table),
        fstab.subvolumes(table, part, own),
        fstab.absent(table, _known(kinds), lambda part: file_systems.names(disk, part, kinds[part])),
    )


def _open_root(disk: Blocks) -> tuple[dict[Partition, str], Partition, Opened]:
    kinds = {part: kind_of(disk, part) for part in partitions(disk)}
    return kinds, *_root(disk, kinds)


def _others(disk: Blocks, kinds: dict[Partition, str], root: Partition, table: str) -> dict[str, Partition]:
    others = [part for part in _known(kinds) if part != root]
    return fstab.mounts(table, others, lambda part: file_systems.names(disk, part, kinds[part]))


def _known(kinds: dict[Partition, str]) -> list[Partition]:
    return [part for part in kinds if kinds[part] in file_systems.KINDS]


def _fstab(system: FileSystem) -> str:
    return decode(Tree({"": system}).read("etc/fstab") or b"")


def _root(disk: Blocks, kinds: dict[Partition, str]) -> tuple[Partition, Opened]:
    """The partition with the root file system, and this."""
    known = [part for part in kinds if kinds[part] in file_systems.ROOTS]
    marked = [part for part in known if part.type in ROOT_TYPES.values()]
    roots, refused = [], []
    for part in marked if len(marked) == 1 else known:
        try:
            system = file_systems.opened(disk, part, kinds[part])
        except UsageError as error:
            refused.append(error)
            continue
        if len(marked) == 1 or _is_root(system.files):
            roots.append((part, system))
    if len(roots) == 1:
        return roots[0]
    if refused:
        raise refused[0]
    if roots:
        where = " and ".join(part.called for part, _ in roots)
        raise UsageError(f"the layer has more than one root file system: on {where}")
    raise _nothing(kinds)


def _is_root(system: FileSystem) -> bool:
    names = {node.name for node in system.children(system.root())}
    return "etc" in names and bool(names & {"usr", "bin"})


def _nothing(kinds: dict[Partition, str]) -> UsageError:
    told = ", ".join(f"{part.called} has {name or 'nothing that is known'}" for part, name in kinds.items())
    hint = next((_HINTS[name] for name in kinds.values() if name in _HINTS), "")
    return UsageError(f"the layer has no root file system of Linux: {told or 'no partition'}", hint=hint)
