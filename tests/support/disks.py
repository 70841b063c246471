"""Disks and folders with real file systems."""

from __future__ import annotations

import os
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


def partitioned(path: Path, *files: Path, type: str = "83") -> Path:
    """A disk with a partition for each of these images, which end at a full MiB."""
    starts, at = [], START
    for file in files:
        starts.append(at)
        at += file.stat().st_size
    sizes = [file.stat().st_size for file in files]
    lines = [f"start={at >> 9}, size={size >> 9}, type={type}" for at, size in zip(starts, sizes, strict=True)]
    with path.open("wb") as disk:
        disk.truncate(at)
    table = "\n".join(("label: dos", "label-id: 0x12345678", *lines))
    subprocess.run(["sfdisk", "--quiet", path], input=table, text=True, check=True)
    for start, file in zip(starts, files, strict=True):
        argv = ["dd", f"if={file}", f"of={path}", "bs=1M", f"seek={start >> 20}", "conv=notrunc,sparse"]
        subprocess.run(argv, check=True, capture_output=True)
    return path


def made(path: Path, mib: int, *mkfs: str | Path) -> Path:
    """An image of a file system."""
    with path.open("wb") as file:
        file.truncate(mib << 20)
    subprocess.run([*mkfs, path], check=True, capture_output=True)
    return path


def flushed(path: Path, text: str) -> None:
    """Write a file and flush it, which a crash after that leaves in the journal."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def overwrite(disk: Path, offset: int, data: bytes) -> None:
    """Put other bytes in a place of a raw disk."""
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@contextmanager
def by_hand(image: Path, kind: str, options: str = "loop") -> Iterator[Path]:
    """Mount an image for a moment. Skip the test where the kernel has no file system of its kind."""
    place = image.with_name("by-hand")
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", kind, "-o", options, image, place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this kernel has no {kind}: {done.stderr}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
