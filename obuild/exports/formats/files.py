"""The files of the root file system: as a tar file, as a folder, or as a squashfs image.

All are made from one tar file, which is written once for an export, beside the raw disk.
"""

from __future__ import annotations

import os
from pathlib import Path

from obuild.errors import UsageError
from obuild.exports.disk import Disk
from obuild.exports.formats import compressed
from obuild.guests.profile import Card
from obuild.host import process
from obuild.host.trees import root, tar

#: For the queues of mksquashfs, which would take a quarter of the host's memory, and gain nothing by that.
SQUASHFS_MEMORY = "64M"


def check(size: int, card: Card) -> None:
    """UsageError unless the layer is one of Linux."""
    if card.os != "linux":
        raise UsageError(f"only the files of a Linux layer can be exported, and this one has {card.os}")


def check_root(size: int, card: Card) -> None:
    """As `check`, and UsageError unless root asks: nobody else can give files to their owners."""
    check(size, card)
    if os.geteuid() != 0:
        raise UsageError("only root can export to a folder that keeps owners", hint="use sudo, or --type tar")


def tar_of(disk: Disk) -> Path:
    """The tar file of the disk's root file system, beside the disk. Whoever changes it removes it first."""
    path = disk.path.with_name("files.tar")
    if not path.exists():
        with root.of_raw(disk.path) as tree:
            tar.write(tree, path)
    return path


def write_tar(disk: Disk, out: Path) -> None:
    """See `Format.write`."""
    out.hardlink_to(tar_of(disk))


def write_gz(disk: Disk, out: Path) -> None:
    """As `write_tar`, compressed."""
    compressed.gz(disk, tar_of(disk), out)


def write_xz(disk: Disk, out: Path) -> None:
    """As `write_tar`, compressed."""
    compressed.xz(disk, tar_of(disk), out)


def write_zst(disk: Disk, out: Path) -> None:
    """As `write_tar`, compressed."""
    compressed.zst(disk, tar_of(disk), out)


def write_folder(disk: Disk, out: Path) -> None:
    """See `Format.write`. `out` becomes a folder with the owners, modes and xattrs of the layer."""
    out.mkdir()
    kept = ("--numeric-owner", "--same-owner", "--same-permissions", "--xattrs", "--xattrs-include=*")
    process.run(["tar", *kept, "--extract", "--file", tar_of(disk), "--directory", out])


def write_squashfs(disk: Disk, out: Path) -> None:
    """See `Format.write`."""
    packed = tar_of(disk)
    # mksquashfs dates the root and the image by the clock, unless this is earlier. Later times would be set to it.
    epoch = min(int(packed.stat().st_mtime), 2**32 - 1)
    argv: list[process.Arg] = [
        *("mksquashfs", "-", out, "-tar"),
        *("-comp", "zstd", "-Xcompression-level", "3"),
        # It takes no root folder from a tar file, but the user who runs it.
        *("-root-mode", "0755", "-root-uid", "0", "-root-gid", "0"),
        *("-noappend", "-no-progress", "-quiet"),
        *("-mem", SQUASHFS_MEMORY),
    ]
    env = {"SOURCE_DATE_EPOCH": str(epoch)}
    process.run(argv, stdin=packed, env=env, progress=disk.reading(packed.stat().st_size))
