"""Compressed files: the same input gives the same bytes, on any number of CPUs."""

from __future__ import annotations

from pathlib import Path

from obuild.exports.disk import Disk
from obuild.host import process


def gz(disk: Disk, path: Path, out: Path) -> None:
    """Compress a file by gzip, which writes neither name nor time. `path` stays; `out` is in a folder of ours.

    It is the disk itself, or made of it.
    """
    _run(disk, path, out, ["gzip", "--no-name", "--keep", "--force", "--suffix=.gz"], ".gz")


def xz(disk: Disk, path: Path, out: Path) -> None:
    """As `gz`, by xz, in blocks: with one thread it would write a single block."""
    _run(disk, path, out, ["xz", "--threads=2", "--keep", "--force"], ".xz")


def zst(disk: Disk, path: Path, out: Path) -> None:
    """As `gz`, by zstd."""
    _run(disk, path, out, ["zstd", "--quiet", "--force", "-T2"], ".zst")


def _run(disk: Disk, path: Path, out: Path, program: list[str], suffix: str) -> None:
    process.run([*program, "--", path], progress=disk.reading(path.stat().st_size))
    path.with_name(f"{path.name}{suffix}").replace(out)
