"""XFS is read as Linux reads it, without a mount."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from obuild.errors import ObuildError, UsageError
from obuild.host.blocks import raw_file
from obuild.host.trees import root
from obuild.host.trees.xfs import free
from tests.support.damage import every_end, every_end_of
from tests.support.disks import by_hand, flushed, made, overwrite
from tests.support.files import as_linux_sees_it, holes, populate, populate_more

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")

#: The offsets of fields in the superblock.
VERSION, FEATURES, LOG = 100, 216, 48


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """mkfs makes small file systems, with small logs, where these are set."""
    for name in ("TEST_DIR", "TEST_DEV", "QA_CHECK_FS"):
        monkeypatch.setenv(name, "1")


def image(path: Path, *options: str) -> Path:
    return made(path, 96, "mkfs.xfs", "-q", *options)


@pytest.mark.parametrize(
    "options",
    [
        "-b size=4096",
        "-b size=1024 -n size=8192 -i size=512",
        "-b size=2048 -i size=1024",
        "-i nrext64=1",
        "-m bigtime=0,reflink=0,inobtcount=0,rmapbt=0,finobt=0",
    ],
)
def test_a_tree_is_what_linux_sees(tmp_path: Path, options: str) -> None:
    disk = image(tmp_path / "disk", *options.split())
    with by_hand(disk, "xfs") as top:
        populate(top)
        populate_more(top)
        chance = random.Random(2)
        os.setxattr(top / "text", "user.largest", chance.randbytes(60_000))
        for number in range(400):
            os.setxattr(top / "text", f"user.a-rather-long-name-of-an-attribute-{number}", chance.randbytes(60))
        holes(top / "more-fragments", chance.randbytes(12 << 20), 4096)
        subprocess.run(["cp", "--reflink=auto", top / "text", top / "text-again"], check=True)
    as_linux_sees_it(disk, "xfs")


def test_version_4_is_read(tmp_path: Path) -> None:
    """New kernels refuse it, so mkfs puts the files there."""
    (tmp_path / "text").write_text("text" * 10_000)
    names = "\n".join(f"a-name-that-is-not-short-{number} ---644 5 7 {tmp_path}/text" for number in range(200))
    (tmp_path / "proto").write_text(
        f"""/
0 0
d--755 0 0
etc d--755 0 0
link l--777 0 0 {"t" * 300}
os-release ---644 0 0 {tmp_path}/text
null c--666 3 4 1 3
$
usr d--755 0 0
{names}
$
$
"""
    )
    options = ("-m", "crc=0,finobt=0", "-n", "ftype=0", "-p", str(tmp_path / "proto"))
    with root.of_raw(image(tmp_path / "disk", *options)) as tree:
        etc = {node.name: node for node in tree.children(tree.find("etc") or tree.root())}
        assert sorted(etc) == ["link", "null", "os-release"]
        assert etc["link"].source.target(etc["link"]) == "t" * 300
        assert (etc["null"].device, etc["null"].uid, etc["null"].gid) == ((1, 3), 3, 4)
        assert tree.read("etc/os-release") == b"text" * 10_000
        usr = tree.children(tree.find("usr") or tree.root())
        assert len(usr) == 200
        assert {(node.mode, node.uid, node.gid, node.links) for node in usr} == {(0o100644, 5, 7, 1)}


def folders(top: Path) -> None:
    for name in ("etc", "usr"):
        (top / name).mkdir()


def test_a_log_that_is_still_needed_is_refused(tmp_path: Path) -> None:
    disk, crashed = image(tmp_path / "disk"), tmp_path / "crashed"
    with by_hand(disk, "xfs") as top:
        folders(top)
        flushed(top / "etc/file", "")
        shutil.copyfile(disk, crashed)
    assert "state: <DIRTY>" in subprocess.check_output(["xfs_logprint", "-t", crashed], text=True)
    with pytest.raises(UsageError, match="the disk: the file system was not unmounted") as caught:
        root.of_raw(crashed).__enter__()
    assert "(run (shell true))" in caught.value.hint
    with by_hand(crashed, "xfs", "loop,nouuid"):
        pass
    with root.of_raw(crashed) as tree:
        assert tree.read("etc/file") == b""


def test_a_file_system_that_was_made_read_only_is_complete(tmp_path: Path) -> None:
    """That is how machines leave their root when they power off."""
    disk, off = image(tmp_path / "disk"), tmp_path / "off"
    with by_hand(disk, "xfs") as top:
        folders(top)
        subprocess.run(["mount", "-o", "remount,ro", top], check=True)
        shutil.copyfile(disk, off)
    with root.of_raw(off) as tree:
        assert [node.path for node in tree.walk()] == ["", "etc", "usr"]


def test_a_log_that_has_gone_round_is_complete(tmp_path: Path) -> None:
    """Its newest record may be anywhere."""
    disk, ends = image(tmp_path / "disk"), []
    for _ in range(6):
        with by_hand(disk, "xfs") as top:
            for name in ("etc", "usr"):
                (top / name).mkdir(exist_ok=True)
            for number in range(4000):
                (top / f"etc/{number}").mkdir()
            subprocess.run(["sync", "-f", top], check=True)
            for number in range(4000):
                (top / f"etc/{number}").rmdir()
        with root.of_raw(disk) as tree:
            assert [node.path for node in tree.walk()] == ["", "etc", "usr"]
        told = subprocess.check_output(["xfs_logprint", "-t", disk], text=True)
        (end,) = re.findall("head: ([0-9]+) state: <CLEAN>", told)
        ends.append(int(end))
    assert ends != sorted(ends)


@pytest.mark.parametrize("block", [1024, 4096])
def test_free_blocks_are_those_that_xfs_db_lists(tmp_path: Path, block: int) -> None:
    disk = image(tmp_path / "disk", "-b", f"size={block}")
    with by_hand(disk, "xfs") as top:
        populate(top)
        populate_more(top)
        shutil.rmtree(top / "very-many")
    told = subprocess.check_output(["xfs_db", "-r", "-c", "sb 0", "-c", "print agblocks", disk], text=True)
    per_group = int(told.split()[-1])
    listed = subprocess.check_output(["xfs_db", "-r", "-c", "freesp -d", disk], text=True)
    expected: set[int] = set()
    for group, at, count in re.findall("^ *([0-9]+) +([0-9]+) +([0-9]+)$", listed, re.MULTILINE):
        first = int(group) * per_group + int(at)
        expected.update(range(first, first + int(count)))
    with raw_file(disk) as opened:
        runs = free.free(opened, 0)
    found = [number for at, length in runs for number in range(at // block, (at + length) // block)]
    assert len(runs) > 20
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [
        (FEATURES, struct.pack(">I", 1 << 20 | 1), "has the feature 0x100000, which obuild cannot read"),
        (FEATURES, struct.pack(">I", 0x200 | 1), "has the feature zoned, which"),
        (FEATURES, struct.pack(">I", 0x11), "wants to be repaired"),
        (LOG, bytes(8), "has the feature external log, which"),
        (VERSION, struct.pack(">H", 3), "the file system is damaged: its superblock has wrong sizes"),
        (4, struct.pack(">I", 1000), "the file system is damaged: its superblock has wrong sizes"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, offset: int, value: bytes, said: str) -> None:
    disk = image(tmp_path / "disk")
    overwrite(disk, offset, value)
    with pytest.raises(ObuildError, match=said), root.of_raw(disk):
        pass


def test_damage_anywhere_is_an_error_and_nothing_worse(tmp_path: Path) -> None:
    disk = image(tmp_path / "disk", "-b", "size=1024")
    with by_hand(disk, "xfs") as top:
        populate(top)
        for number in range(60):
            os.setxattr(top / "etc", f"user.name-{number}", b"x" * number)
        holes(top / "fragments", b"x" * (200 << 10), 2048)
    ends = every_end(disk.read_bytes(), 300)
    assert min(ends.values()) > 10
    assert every_end_of(free.free, disk.read_bytes(), 300)["refused"] > 10
