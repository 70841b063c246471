"""An ISO image that writes the layer's disk onto a disk of the machine that it boots on."""

from __future__ import annotations

from pathlib import Path

from obuild.exports.disk import Disk
from obuild.exports.formats import files
from obuild.exports.iso import image
from obuild.exports.iso.medium import EPOCH, PAYLOAD, Entry
from obuild.guests.profile import Card
from obuild.host import process, sparse


def check(size: int, card: Card) -> None:
    """See `image.check`."""
    image.check(size, card)


def write(disk: Disk, out: Path) -> None:
    """See `Format.write`."""
    with image.collect(disk, "install", out.name.removesuffix(".installer.iso")) as made:
        _pack(disk, made.medium.live / PAYLOAD)
        settings = {
            "size": str(disk.size),
            "sha256": sparse.sha256(disk.path, disk.reading(disk.size)),
            "disk": disk.options.install_disk,
            "unattended": "1" if disk.options.unattended else "",
        }
        made.put_kernel("install.sh", settings)
        made.write([Entry(f"Install {made.title}", made.kernel.cmdline)], out)


def _pack(disk: Disk, out: Path) -> None:
    """Make a squashfs image with the one file disk.raw, whose holes are holes there, too."""
    argv: list[process.Arg] = [
        *("mksquashfs", disk.path, out, "-comp", "zstd", "-Xcompression-level", "3"),
        *("-all-root", "-root-mode", "0755", "-no-xattrs", "-noappend", "-no-progress", "-quiet"),
        *("-mem", files.SQUASHFS_MEMORY),
    ]
    # The times that it writes are not later than this.
    process.run(argv, env={"SOURCE_DATE_EPOCH": str(EPOCH)}, progress=disk.reading(disk.size))
