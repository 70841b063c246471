"""Partition tables as sfdisk(8) writes and reads them."""

from __future__ import annotations

from pathlib import Path

from obuild.host import process

PROGRAMS = ("sfdisk",)


def script(disk: Path) -> str:
    """The partition table of a raw disk, with all ids and flags. ProcessError if it has none."""
    return process.run(["sfdisk", "--dump", disk.name], env={"LC_ALL": "C"}, cwd=disk.parent).decode()


def write(disk: Path, script: str) -> None:
    """Write a partition table to a raw disk; what is in the partitions stays."""
    # Never wipe: sfdisk would mistake the file systems for leftovers of an older disk.
    process.run(["sfdisk", "--quiet", "--wipe=never", "--wipe-partitions=never", disk], input=script.encode())
