"""A VirtualBox disk (VDI), by qemu-img, with ids that follow from the layer."""

from __future__ import annotations

from pathlib import Path

from obuild.exports.disk import Disk
from obuild.host import qemu_img

#: Where the header has the ids of the image and of its last snapshot.
_IDS = 0x188


def write(disk: Disk, out: Path) -> None:
    """See `Format.write`."""
    qemu_img.convert_raw(disk.path, out, "vdi", progress=disk.reading())
    with out.open("r+b") as file:
        file.seek(_IDS)
        file.write(disk.id("vdi").bytes_le + disk.id("vdi snapshot").bytes_le)
