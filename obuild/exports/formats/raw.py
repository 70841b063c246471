"""The raw disk: with holes, or compressed."""

from __future__ import annotations

from pathlib import Path

from obuild.exports.disk import Disk
from obuild.exports.formats import compressed


def write(disk: Disk, out: Path) -> None:
    """See `Format.write`. The disk gets a second name: it is only read from now on."""
    out.hardlink_to(disk.path)


def write_gz(disk: Disk, out: Path) -> None:
    """As `write`, compressed."""
    compressed.gz(disk, disk.path, out)


def write_xz(disk: Disk, out: Path) -> None:
    """As `write`, compressed."""
    compressed.xz(disk, disk.path, out)


def write_zst(disk: Disk, out: Path) -> None:
    """As `write`, compressed."""
    compressed.zst(disk, disk.path, out)
