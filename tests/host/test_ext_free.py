"""The free blocks of a file system, compared with what dumpe2fs says."""

from __future__ import annotations

import random
import re
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from obuild.errors import ObuildError
from obuild.host.blocks import Bytes, raw_file
from obuild.host.trees.ext import free as ext_free

Runs = list[tuple[int, int]]

SUPERBLOCK = 1024


def made(path: Path, *options: str, size: str = "63M", grown: str = "") -> Path:
    """A file system with some files, and holes where others were."""
    subprocess.run(["mke2fs", "-q", "-F", *options, path, size], check=True)
    source = path.with_name("source")
    source.write_bytes(random.Random(1).randbytes(700_000))
    commands = f"write {source} a\nmkdir x\nwrite {source} x/b\nwrite {source} c\nrm a\nrm c\n"
    subprocess.run(["debugfs", "-w", "-f", "-", path], input=commands.encode(), check=True, capture_output=True)
    if grown:
        subprocess.run(["truncate", "-s", grown, path], check=True)
        subprocess.run(["e2fsck", "-fy", path], check=False, capture_output=True)
        subprocess.run(["resize2fs", path], check=True, capture_output=True)
    return path


def found(path: Path) -> Runs:
    with raw_file(path) as disk:
        return joined(ext_free.free(disk, 0))


def told(path: Path) -> Runs:
    """What dumpe2fs says."""
    text = subprocess.run(["dumpe2fs", path], capture_output=True, text=True, check=True).stdout
    block = int(re.findall(r"^Block size:\s+([0-9]+)$", text, re.MULTILINE)[0])
    runs = re.findall(
        r"([0-9]+)(?:-([0-9]+))?", " ".join(re.findall(r"^  Free blocks: (.*)$", text, re.MULTILINE))
    )
    return joined((int(first) * block, (int(last or first) - int(first) + 1) * block) for first, last in runs)


def joined(runs: Iterable[tuple[int, int]]) -> Runs:
    """Runs of several groups that follow each other are one."""
    result: Runs = []
    for at, length in sorted(runs):
        if result and sum(result[-1]) == at:
            result[-1] = (result[-1][0], result[-1][1] + length)
        else:
            result.append((at, length))
    return result


@pytest.mark.parametrize("block", ["1024", "2048", "4096"])
@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_each_version_with_each_size_of_blocks(tmp_path: Path, kind: str, block: str) -> None:
    path = made(tmp_path / "disk", "-t", kind, "-b", block, size="300M")
    assert found(path) == told(path)


@pytest.mark.parametrize(
    "options",
    [
        "-O ^flex_bg",
        "-O ^resize_inode",
        "-O sparse_super2",
        "-O ^sparse_super,^resize_inode",
        "-O ^64bit",
        "-O ^metadata_csum,uninit_bg",
        "-O ^metadata_csum,^uninit_bg",
        "-G 4 -g 8192",
        "-I 128 -N 20000",
        "-E lazy_itable_init=0",
    ],
)
def test_each_way_to_lay_out_a_file_system(tmp_path: Path, options: str) -> None:
    path = made(tmp_path / "disk", "-t", "ext4", "-b", "1024", *options.split())
    assert found(path) == told(path)


def test_a_file_system_that_has_grown(tmp_path: Path) -> None:
    path = made(tmp_path / "disk", "-t", "ext4", "-b", "1024", size="20M", grown="150M")
    assert found(path) == told(path)


@pytest.mark.parametrize("feature", ["bigalloc", "meta_bg,^resize_inode"])
def test_a_feature_that_is_not_known_is_named(tmp_path: Path, feature: str) -> None:
    path = made(tmp_path / "disk", "-t", "ext4", "-O", feature)
    with pytest.raises(ObuildError, match=f"^the file system has the feature {feature.partition(',')[0]}$"):
        found(path)


def test_a_bitmap_that_does_not_fit_its_group_is_damage(tmp_path: Path) -> None:
    path = made(tmp_path / "disk", "-t", "ext4", "-b", "4096")
    data = bytearray(path.read_bytes())
    (bitmap,) = struct.unpack_from("<I", data, 4096)
    data[bitmap * 4096 : bitmap * 4096 + 64] = bytes(64)  # as if its first blocks were free
    with pytest.raises(
        ObuildError, match="the file system is damaged: group 0 has another number of free blocks than it says"
    ):
        list(ext_free.free(Bytes(bytes(data)), 0))


def test_a_damaged_superblock_or_table_ends_in_a_message(tmp_path: Path) -> None:
    whole = made(tmp_path / "disk", "-t", "ext4", "-b", "1024", size="8M").read_bytes()
    chance = random.Random(1)
    for _ in range(400):
        data = bytearray(whole)
        at = chance.choice([SUPERBLOCK, 2 * SUPERBLOCK]) + chance.randrange(336 if chance.random() < 0.9 else 1024)
        data[at : at + 4] = chance.choice([bytes(4), b"\xff" * 4, chance.randbytes(4)])
        try:
            runs = list(ext_free.free(Bytes(bytes(data)), 0))
        except ObuildError as error:
            assert error.message  # noqa: PT017  # most damage is noticed, and what is not stays on the disk
        else:
            assert all(0 < at < at + length <= len(data) for at, length in runs)
