"""Compressed files: the same input gives the same bytes, on any number of CPUs."""

from __future__ import annotations

from pathlib import Path

from obuild.host import process


def gz(path: Path, out: Path) -> None:
    """Compress a file by gzip, which writes neither name nor time. `path` stays; `out` is in a folder of ours."""
    _run(path, out, ["gzip", "--no-name", "--keep", "--force", "--suffix=.gz"], ".gz")


def xz(path: Path, out: Path) -> None:
    """As `gz`, by xz, in blocks: with one thread it would write a single block."""
    _run(path, out, ["xz", "--threads=2", "--keep", "--force"], ".xz")


def zst(path: Path, out: Path) -> None:
    """As `gz`, by zstd."""
    _run(path, out, ["zstd", "--quiet", "--force", "-T2"], ".zst")


def _run(path: Path, out: Path, program: list[str], suffix: str) -> None:
    process.run([*program, "--", path])
    path.with_name(f"{path.name}{suffix}").replace(out)
