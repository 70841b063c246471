"""Disks and folders with real file systems."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Where the partition of `ext4_disk` begins, in bytes.
START = 1 << 20


def ext4_disk(path: Path, *commands: str, size: int = 32 << 20) -> Path:
    """Make a raw disk with one ext4 partition, without mounting it, and run commands of debugfs on it."""
    with path.open("wb") as file:
        file.truncate(size)
    table = f"label: dos\nlabel-id: 0x12345678\nstart={START // 512}, type=83, bootable\n"
    subprocess.run(["sfdisk", "--quiet", path], input=table.encode(), check=True)
    place = f"{path}?offset={START}"
    kib = f"{(size - START) >> 10}k"
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-E", f"offset={START}", path, kib], check=True
    )
    for command in commands:
        subprocess.run(["debugfs", "-w", "-R", command, place], check=True, capture_output=True)
    return path


@contextmanager
def small_file_system(image: Path, mount: Path, size: int) -> Iterator[Path]:
    """Mount a new ext4 file system of `size` bytes. Skip the test where there is no loop device."""
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", image], check=True)
    done = subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no loop device: {done.stderr}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)
