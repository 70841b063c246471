"""Btrfs is read as Linux reads it, without a mount."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from obuild.errors import ObuildError, UsageError
from obuild.host.trees import root
from obuild.host.trees.btrfs import compression, free, lzo
from tests.support.damage import every_end, every_end_of
from tests.support.disks import by_hand, flushed, made, overwrite
from tests.support.files import as_linux_sees_it, populate, populate_more

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")

#: The offsets of fields in the disk.
SUPERBLOCK = 64 << 10
DEVICES, SECTOR, FEATURES = (SUPERBLOCK + at for at in (136, 144, 188))


def image(path: Path, *options: str) -> Path:
    return made(path, 200, "mkfs.btrfs", "-q", *options)


def run(*argv: str | Path) -> None:
    subprocess.run(["btrfs", "-q", *argv], check=True)


@pytest.mark.parametrize(
    ("options", "mount"),
    [
        ("", "loop"),
        ("-O ^no-holes,extref,^skinny-metadata -n 4096", "loop,max_inline=0"),
        ("-R ^free-space-tree -m single", "loop,compress-force=zstd"),
        ("--mixed", "loop,compress-force=zlib"),
        ("--metadata single --csum xxhash", "loop,compress-force=lzo"),
    ],
)
def test_a_tree_is_what_linux_sees(tmp_path: Path, options: str, mount: str) -> None:
    disk = image(tmp_path / "disk", *options.split())
    with by_hand(disk, "btrfs", mount) as top:
        populate(top)
        populate_more(top)
        subprocess.run(["cp", "--reflink=always", top / "text", top / "text-again"], check=True)
        with (top / "text-again").open("r+b") as file:
            file.seek(50_001)
            file.write(b"CHANGED" * 1000)
    as_linux_sees_it(disk, "btrfs")


@contextmanager
def system(disk: Path) -> Iterator[Path]:
    """Fill a new btrfs."""
    with by_hand(image(disk), "btrfs") as top:
        yield top


def test_a_snapshot_has_empty_folders_where_subvolumes_were(tmp_path: Path) -> None:
    with system(tmp_path / "disk") as top:
        for name in ("etc", "usr"):
            (top / name).mkdir()
        for name in ("one", "one/two", "one/three"):
            run("subvolume", "create", top / name)
            (top / name / "file").write_text(name)
        run("subvolume", "snapshot", top / "one", top / "later")
    with root.of_raw(tmp_path / "disk") as tree:
        paths = [node.path for node in tree.walk()]
        assert tree.read("later/file") == b"one"
        assert tree.read("one/two/file") == b"one/two"
    ones = ["one", "one/file", "one/three", "one/three/file", "one/two", "one/two/file"]
    assert paths == ["", "etc", "later", "later/file", "later/three", "later/two", *ones, "usr"]


def root_in(top: Path, fstab: str = "") -> None:
    for name in ("etc", "usr", "home", "srv", "mnt"):
        (top / name).mkdir()
    (top / "etc/fstab").write_text(fstab)


@pytest.mark.parametrize("name", ["@", "@rootfs", "root"])
def test_the_root_may_be_a_subvolume(tmp_path: Path, name: str) -> None:
    with system(tmp_path / "disk") as top:
        for each in (name, "@home", "other"):
            run("subvolume", "create", top / each)
        (top / "@home/file").write_text("of the home")
        (top / "other/file").write_text("of the other")
        run("subvolume", "create", top / "other/inner")
        (top / "other/inner/file").write_text("of the inner")
        lines = f"/dev/vda / btrfs subvol={name} 0 0\nLABEL=all /home btrfs compress=zstd,subvol=/@home 0 0\n"
        lines += "LABEL=all /srv btrfs subvolid=258\nLABEL=all /mnt btrfs subvol=other/inner\n"
        root_in(top / name, lines)
    run("filesystem", "label", tmp_path / "disk", "all")
    with root.of_raw(tmp_path / "disk") as tree:
        paths = [node.path for node in tree.walk() if node.is_file]
        assert paths == ["etc/fstab", "home/file", "mnt/file", "srv/file", "srv/inner/file"]
        assert tree.read("home/file") == b"of the home"
        assert tree.read("mnt/file") == b"of the inner"
        assert tree.read("srv/file") == b"of the other"


def test_the_root_may_be_the_default_subvolume(tmp_path: Path) -> None:
    with system(tmp_path / "disk") as top:
        run("subvolume", "create", top / "system")
        root_in(top / "system")
        (top / "system/file").write_text("of the default")
        run("subvolume", "set-default", top / "system")
    with root.of_raw(tmp_path / "disk") as tree:
        assert tree.read("file") == b"of the default"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("subvol=@none", "the btrfs file system has no subvolume @none, which its fstab mounts"),
        ("subvol=etc/no/such", "has no subvolume etc/no/such, which"),
        ("subvol=etc", "etc is a folder of the btrfs file system, not the subvolume that its fstab mounts"),
        ("subvolid=300", "the file system is damaged: there is no tree 300"),
        ("subvolid=x", "the file system is damaged: invalid literal"),
    ],
)
def test_a_subvolume_that_is_not_there_is_named(tmp_path: Path, option: str, said: str) -> None:
    with system(tmp_path / "disk") as top:
        root_in(top, f"/dev/vda0 /home btrfs {option} 0 0\n")
    with pytest.raises(ObuildError, match=said), root.of_raw(tmp_path / "disk"):
        pass


def test_a_log_that_is_still_needed_is_refused(tmp_path: Path) -> None:
    crashed = tmp_path / "crashed"
    with system(tmp_path / "disk") as top:
        root_in(top)
        subprocess.run(["sync", "-f", top], check=True)
        flushed(top / "etc/file", "text")
        shutil.copyfile(tmp_path / "disk", crashed)
    with pytest.raises(UsageError, match="the disk: the file system was not unmounted") as caught:
        root.of_raw(crashed).__enter__()
    assert "(run (shell true))" in caught.value.hint
    with by_hand(crashed, "btrfs"):
        pass
    with root.of_raw(crashed) as tree:
        assert tree.read("etc/file") == b"text"


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [
        (FEATURES, struct.pack("<Q", 1 << 40), "has the feature 0x10000000000, which obuild cannot read"),
        (FEATURES, struct.pack("<Q", 0x1000), "has the feature zoned, which"),
        (DEVICES, struct.pack("<Q", 2), "has 2 devices, and obuild reads only those with one"),
        (SECTOR, struct.pack("<I", 1000), "the file system is damaged: its superblock has wrong sizes"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, offset: int, value: bytes, said: str) -> None:
    disk = image(tmp_path / "disk")
    overwrite(disk, offset, value)
    with pytest.raises(ObuildError, match=said), root.of_raw(disk):
        pass


@pytest.mark.parametrize("how", ["zstd", "zlib", "lzo"])
def test_damage_anywhere_is_an_error_and_nothing_worse(tmp_path: Path, how: str) -> None:
    disk = image(tmp_path / "disk", "-n", "4096")
    with by_hand(disk, "btrfs", f"loop,compress-force={how}") as top:
        populate(top)
        (top / "text").write_text("some text " * 50)
        run("subvolume", "create", top / "inner")
        run("subvolume", "snapshot", top / "inner", top / "etc/snapshot")
    ends = every_end(disk.read_bytes(), 100)
    assert min(ends.values()) > 10
    assert every_end_of(free.free, disk.read_bytes(), 100)["refused"] > 10


def test_damaged_compression_is_an_error_and_nothing_worse() -> None:
    chance = random.Random(1)
    for how in (0, 1, 2, 3, 4):
        for _ in range(300):
            data = chance.randbytes(chance.randrange(1, 60))
            try:
                found = compression.unpacked(data, how, 4096, 4096)
            except (ValueError, IndexError, struct.error):
                continue
            assert len(found) == 4096
    with pytest.raises(ValueError, match="too long"):
        compression.unpacked(b"", 1, 1 << 30, 4096)


@pytest.mark.parametrize(
    ("packed", "expected"),
    [
        (b"\x14abc\x11\x00\x00", b"abc"),
        (b"\x12a\x20\x08\x00\x00\x11\x00\x00", b"a" * 42),
        (b"\x15abcd\x2c\x0c\x00\x11\x00\x00", b"abcd" * 4 + b"ab"),
    ],
)
def test_lzo(packed: bytes, expected: bytes) -> None:
    assert lzo.unpacked(packed, 4096) == expected
    for length in range(len(packed)):
        with pytest.raises((ValueError, IndexError)):
            lzo.unpacked(packed[:length], 4096)
