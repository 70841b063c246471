"""Grow the disk in an image file, with its last partition and the file system there, without a boot."""

from __future__ import annotations

from pathlib import Path

from obuild.host import qemu_img, resize


def grow(image: Path, size: int) -> Path:
    """Make the disk in an image file `size` bytes; returns the new image beside it, which replaces the file.

    In its folder there must be room for three copies of the disk's data. UsageError if the disk is larger, or if
    its last file system is not ext2, ext3 or ext4.
    """
    raw, grown = image.with_suffix(".raw"), image.with_suffix(".qcow2")
    if qemu_img.detect(image) == "qcow2":
        qemu_img.unpack(image, raw)
        image.unlink()
    else:
        image.rename(raw)
    resize.grow(raw, size)
    qemu_img.pack(raw, grown)
    raw.unlink()
    return grown
