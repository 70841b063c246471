"""What all layouts share: the root is partition 1, at 1 MiB, and ids follow from what the disk is made of."""

from __future__ import annotations

import uuid

from obuild.bases.kind import Recipe, digest

SECTOR = 512

#: The start of the root partition, in bytes. Only firmware and boot loaders use the space before it.
START = 1 << 20

#: The guest kernel's name for the root partition.
DEVICE = "/dev/vda1"

_NAMESPACE = uuid.UUID("5f0f4f0c-9d0b-4b43-8d1f-0b1d3e6d9a11")


def disk_id(recipe: Recipe) -> uuid.UUID:
    """Return the id of the root file system; an MBR has its first 32 bits as the disk's signature."""
    return uuid.uuid5(_NAMESPACE, digest(recipe))


def part_id(recipe: Recipe, part: str) -> uuid.UUID:
    """Return the id of another part of the disk, such as "esp"."""
    return uuid.uuid5(disk_id(recipe), part)
