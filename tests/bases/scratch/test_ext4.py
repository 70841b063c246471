"""The root file system of an image is the same for the same files, whenever and wherever it is made."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from obuild.bases.scratch import ext4
from obuild.errors import ObuildError

START, SIZE = 1 << 20, 16 << 20
EPOCH = 1_700_000_000


def file_system(work: Path, *, clock: int) -> Path:
    """A disk with a file system of a folder, made when the clock of the programs stood at `clock`."""
    root = work / "bare"
    (root / "etc").mkdir(parents=True)
    (root / "etc/key").write_text("\n" * 4096)
    (root / "etc/short").write_text("short")
    (root / "link").symlink_to("etc")
    for path in (root / "etc/key", root / "etc/short", root / "link", root / "etc", root):
        os.utime(path, ns=(clock * 10**9 + 5, 1_600_000_000 * 10**9), follow_symlinks=False)
    (work / "mke2fs.conf").write_text(ext4.CONFIG)
    disk = work / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(START + SIZE)
    argv = ext4.mke2fs_argv(work, UUID(int=7), start=START, size=SIZE)
    subprocess.run(argv, check=True, env={**os.environ, "E2FSPROGS_FAKE_TIME": str(EPOCH)})
    ext4.set_times(disk, start=START, epoch=EPOCH)
    return disk


def test_two_file_systems_of_the_same_files_are_the_same(tmp_path: Path) -> None:
    one = file_system(tmp_path / "one", clock=1_710_000_000)
    two = file_system(tmp_path / "another place", clock=1_750_000_000)
    assert one.read_bytes() == two.read_bytes()
    subprocess.run(["e2fsck", "-fn", f"{one}?offset={START}"], check=True, capture_output=True)


def test_files_keep_the_time_of_their_last_change(tmp_path: Path) -> None:
    disk = file_system(tmp_path / "work", clock=1_710_000_000)
    told = subprocess.run(
        ["debugfs", "-R", "stat /etc/short", f"{disk}?offset={START}"], check=True, capture_output=True, text=True
    ).stdout
    times = {name: int(value, 16) for name, value in re.findall(r"([a-z]+time): 0x([0-9a-f]+)", told)}
    assert times == {"ctime": EPOCH, "atime": EPOCH, "crtime": EPOCH, "mtime": 1_600_000_000}


def test_a_file_of_one_block_is_found_on_the_disk(tmp_path: Path) -> None:
    disk = file_system(tmp_path / "work", clock=1_710_000_000)
    offset = ext4.key_block(disk, "/etc/key", start=START)
    assert disk.read_bytes()[offset : offset + 4096] == b"\n" * 4096


def test_a_file_that_is_not_there_has_no_block(tmp_path: Path) -> None:
    disk = file_system(tmp_path / "work", clock=1_710_000_000)
    with pytest.raises(ObuildError, match="there is no /etc/none"):
        ext4.key_block(disk, "/etc/none", start=START)
    with pytest.raises(ObuildError, match="/etc/short in the new image is not one block"):
        ext4.key_block(disk, "/etc/short", start=START)
