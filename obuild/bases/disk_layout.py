"""Check the first sectors of a disk image: partition table, architecture, boot code."""

from __future__ import annotations

from pathlib import Path

from obuild.bases.kind import Recipe
from obuild.errors import UsageError
from obuild.host import qemu_img, units
from obuild.host.blocks import Bytes
from obuild.host.partitions import ROOT_TYPES, SECTOR, partitions
from obuild.host.qemu_img import Image

#: Enough for the MBR and the GPT with its usual 128 entries.
_HEAD = 34 * SECTOR

#: The size of the boot code in an MBR; the disk's signature and the partition table follow.
_BOOT_CODE = 440

#: Partition types of one architecture: its root (Discoverable Partitions), BIOS boot, PReP boot.
_ARCH_TYPES = {
    **{type: arch for arch, type in ROOT_TYPES.items()},
    "21686148-6449-6e6f-744e-656564454649": "x86_64",
    "9e1a2d38-c612-4316-aa26-8b49521e5a8b": "ppc64le",
}


def check(image: Image, recipe: Recipe, work: Path) -> None:
    """UsageError if an image is too large for the recipe, has no partition, or is for another architecture."""
    where = f"{recipe.name}: the image {recipe.options.image.urls[0]}"
    if image.virtual_size > recipe.size:
        raise UsageError(
            f"{where} is a disk of {units.size(image.virtual_size)}, and size is {units.size(recipe.size)}",
            hint="write a larger size into the recipe",
        )
    data = head(image, work)
    types = partition_types(data)
    if not types:
        raise UsageError(f"{where} has no partition", hint="is it a disk, or the file system of one?")
    arches = {_ARCH_TYPES[each] for each in types if each in _ARCH_TYPES}
    wanted = recipe.card.arch
    if arches and wanted not in arches:
        raise UsageError(f"{where} is for {', '.join(sorted(arches))}, and the recipe says {wanted}")
    if wanted == "x86_64" and not any(data[:_BOOT_CODE]):
        raise UsageError(
            f"{where} cannot be started by a BIOS", hint="is it for another architecture, or for UEFI alone?"
        )


def check_installed(recipe: Recipe, disk: Path, work: Path) -> None:
    """UsageError if an installer has left the qcow2 `disk` without a partition."""
    if not partition_types(head(Image(disk, "qcow2", recipe.size), work)):
        raise UsageError(
            f"{recipe.name}: the installer ended and left no partition on the disk",
            hint="does its answer file name the disk (/dev/vda), and does the ISO boot? --watch shows its screen",
        )


def head(image: Image, work: Path) -> bytes:
    """Return the first sectors of a disk; `work` is a folder for a temporary file."""
    path = work / "head"
    qemu_img.extract_head(image, path, _HEAD)
    return path.read_bytes()


def partition_types(head: bytes) -> list[str]:
    """Return the types of a disk's partitions: GUIDs of a GPT, or two hex digits of an MBR."""
    return [part.type for part in partitions(Bytes(head)) if part.number]
