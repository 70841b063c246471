"""A qcow2 image that needs no other file. Clusters compressed by zstd need QEMU 5.1 or newer."""

from __future__ import annotations

from pathlib import Path

from obuild.exports.disk import Disk
from obuild.host import qemu_img


def write(disk: Disk, out: Path) -> None:
    """See `Format.write`."""
    qemu_img.pack(disk.path, out, compression=disk.options.compression, progress=disk.reading())
