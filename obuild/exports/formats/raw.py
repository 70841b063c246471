"""The raw disk: with holes, or compressed. The same disk gives the same bytes, on any number of CPUs."""

from __future__ import annotations

from pathlib import Path

from obuild.exports.disk import Disk
from obuild.host import process, qemu_img


def write(disk: Disk, out: Path) -> None:
    """See `Format.write`."""
    qemu_img.copy(disk.path, out)


def write_gz(disk: Disk, out: Path) -> None:
    """As `write`, by gzip, which writes neither name nor time."""
    _compressed(disk, out, ["gzip", "--no-name", "--keep", "--force", "--suffix=.gz"], ".gz")


def write_xz(disk: Disk, out: Path) -> None:
    """As `write`, by xz, in blocks: with one thread it would write a single block."""
    _compressed(disk, out, ["xz", "--threads=2", "--keep", "--force"], ".xz")


def write_zst(disk: Disk, out: Path) -> None:
    """As `write`, by zstd."""
    _compressed(disk, out, ["zstd", "--quiet", "--force", "-T2"], ".zst")


def _compressed(disk: Disk, out: Path, program: list[str], suffix: str) -> None:
    process.run([*program, "--", disk.path])
    disk.path.with_name(f"{disk.path.name}{suffix}").replace(out)
