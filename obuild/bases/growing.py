"""Grow the disk in an image file, with its last partition and the file system there, without a boot."""

from __future__ import annotations

from pathlib import Path

from obuild.host import qemu_img, resize


def grow(image: Path, grown: Path, size: int) -> None:
    """Write the disk in an image file to the new qcow2 image `grown`, with `size` bytes.

    In the folder of that there must be room for three copies of the disk's data. UsageError if the disk is larger,
    or if its last file system cannot be resized here.
    """
    raw = grown.with_suffix(".raw")
    if qemu_img.detect(image) == "qcow2":
        qemu_img.unpack(image, raw)
    else:
        qemu_img.copy(image, raw)
    resize.grow(raw, size)
    qemu_img.pack(raw, grown)
    raw.unlink()
