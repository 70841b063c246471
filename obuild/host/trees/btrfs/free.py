"""The free parts of a btrfs: all that no extent is in, and no copy of the superblock."""

from __future__ import annotations

from collections.abc import Iterator

from obuild.host.blocks import Blocks
from obuild.host.trees.btrfs.volume import COPIES, LAST, SUPERBLOCK_SIZE, Volume
from obuild.host.trees.damage import guarded

#: The tree of extents, and the types of its items: an extent of data, and one of metadata.
_EXTENTS, _DATA, _METADATA = 2, 168, 169

#: The beginning of a device belongs to boot loaders.
_RESERVED = 1 << 20


@guarded("btrfs check")
def free(disk: Blocks, start: int) -> list[tuple[int, int]]:
    """The free runs of the file system that begins at `start`, as offset on the disk and length in bytes.

    UsageError if it has unknown features or was not unmounted, ObuildError if it is damaged.
    """
    volume = Volume(disk, start)
    used = [(at, SUPERBLOCK_SIZE) for at in COPIES]
    total = 0
    for logical, length in _extents(volume):
        chunk = volume.chunk(logical, length)
        used += [(place + logical - chunk.logical, length) for place in chunk.places]
        total += length
    if total != volume.used:
        raise ValueError("its extents have another size than it says")
    found, at = [], _RESERVED
    for begin, length in [*sorted(used), (volume.size, 0)]:
        if at < begin <= volume.size:
            found.append((start + at, begin - at))
        at = max(at, begin + length)
    return found


def _extents(volume: Volume) -> Iterator[tuple[int, int]]:
    """All extents, as logical address and length."""
    for (address, type, offset), _ in volume.items(volume.tree(_EXTENTS), (0, 0, 0), (LAST, 255, LAST)):
        if type in (_DATA, _METADATA):
            yield address, offset if type == _DATA else volume.node_size
