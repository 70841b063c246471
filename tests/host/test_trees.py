"""Trees are read as Linux reads them, whatever their file system has in it."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.errors import ObuildError, UsageError
from obuild.host.partitions import SIGNATURES, Partition
from obuild.host.trees import fstab, in_place, root, tar
from obuild.host.trees.folder import Folder
from obuild.host.trees.nodes import Tree
from tests.support.disks import START, by_hand, ext4_disk, made, overwrite
from tests.support.files import Mounted, populate, seen

#: File systems, by name: what makes one, and its size in MiB.
SYSTEMS = {
    "ext4": (("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096"), 24),
    "small-inodes": (("mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", "-I", "128"), 24),
    "ext2": (("mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024"), 24),
    "xfs": (("mkfs.xfs", "-q"), 320),
    "btrfs": (("mkfs.btrfs", "-q"), 120),
}


@pytest.fixture(scope="module", params=SYSTEMS)
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk whose file system, without partitions, has `populate` in it."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    folder: Path = tmp_path_factory.mktemp("disk")
    argv, size = SYSTEMS[request.param]
    if argv[0] != "mke2fs":
        image = made(folder / "disk.raw", size, *argv)
        with by_hand(image, request.param) as top:
            populate(top)
        return image
    (folder / "files").mkdir()
    populate(folder / "files")
    image = made(folder / "disk.raw", size, *argv, "-d", folder / "files")
    # Index the folders, as a kernel does; exit code 1: something was changed.
    assert subprocess.run(["e2fsck", "-fyD", image], capture_output=True).returncode in (0, 1)
    return image


def mounted(disk: Path, folder: Path, use: Callable[[Path], None]) -> None:
    folder.mkdir()
    subprocess.run(["mount", "-o", "ro,loop", disk, folder], check=True)
    try:
        use(folder)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_tree_is_what_linux_sees(disk: Path, tmp_path: Path) -> None:
    """The tar files of the file system and of its mount are the same."""
    mounted(disk, tmp_path / "mount", lambda top: tar.write(Tree({"": Mounted(top)}), tmp_path / "expected"))
    with root.of_raw(disk) as tree:
        tar.write(tree, tmp_path / "found")
        tar.write(tree, tmp_path / "again")
    assert (tmp_path / "found").read_bytes() == (tmp_path / "expected").read_bytes()
    assert (tmp_path / "again").read_bytes() == (tmp_path / "expected").read_bytes()
    assert (tmp_path / "found").stat().st_size < 4 << 20  # the holes are not in it


def test_gnu_tar_unpacks_what_the_tree_has(disk: Path, tmp_path: Path) -> None:
    with root.of_raw(disk) as tree:
        tar.write(tree, tmp_path / "tar")
        expected = [*seen(tree)]
    out = tmp_path / "out"
    out.mkdir()
    options = ("--numeric-owner", "--xattrs", "--xattrs-include=*", "--same-owner")
    done = subprocess.run(["tar", *options, "-xpf", tmp_path / "tar", "-C", out], check=True, capture_output=True)
    assert b"nknown" not in done.stderr
    assert [*seen(Tree({"": Folder(out)}))] == expected


def test_python_reads_the_tar_file(disk: Path, tmp_path: Path) -> None:
    with root.of_raw(disk) as tree:
        tar.write(tree, tmp_path / "tar")
    with tarfile.open(tmp_path / "tar") as opened:
        sparse = opened.getmember("" + "e" * 130)
        assert (sparse.size, sparse.issparse()) == (40 << 20, True)
        su = opened.getmember("usr/bin/su")
        hard = opened.getmember("links/hard")
        assert (hard.uid, hard.gid, hard.mode) == (70_000, 3_000_000, 0o6755)
        assert (su.islnk(), su.linkname) == (True, "links/hard")
        assert opened.getmember("empty").mtime == -1


def test_files_are_found_through_links(disk: Path) -> None:
    with root.of_raw(disk) as tree:
        assert tree.read("etc/os-release") == b"ID=test\n"
        assert tree.read("/usr/abs/../os-release") == b"ID=test\n"
        assert tree.read("../../usr/./os-release") == b"ID=test\n"
        for path in ("usr/loop", "no/such", "usr/os-release/x", "links/long", "etc"):
            assert tree.read(path) is None
        with pytest.raises(ObuildError, match="too large to be read"):
            tree.read("hole", most=1000)


def with_root(path: Path, *commands: str, size: int = 8 << 20) -> Path:
    """A disk whose first partition looks like a root file system."""
    return ext4_disk(path, "mkdir etc", "mkdir usr", *commands, size=size)


def test_a_file_system_that_was_not_unmounted_is_refused(tmp_path: Path) -> None:
    disk = with_root(tmp_path / "disk", "feature needs_recovery")
    with (
        pytest.raises(UsageError, match="partition 1: the file system was not unmounted") as caught,
        root.of_raw(disk),
    ):
        pass
    assert "(run (shell true))" in caught.value.hint


def test_a_feature_that_is_not_known_is_named(tmp_path: Path) -> None:
    disk = with_root(tmp_path / "disk", "feature inline_data")
    with pytest.raises(UsageError, match="has the feature inline_data, which"), root.of_raw(disk):
        pass


def two_partitions(path: Path, *kinds: str) -> Path:
    """A disk with partitions of 4 MiB, each with the signature of a kind, or a root file system."""
    table = "label: dos\n" + "".join(
        f"start={4 << 11 << at}, size={4 << 11}, type=83\n" for at in range(len(kinds))
    )
    path.write_bytes(bytes(32 << 20))
    subprocess.run(["sfdisk", "--quiet", path], input=table.encode(), check=True)
    with path.open("r+b") as file:
        for number, kind in enumerate(kinds):
            start = 4 << 20 << number
            if kind in ("root", "boot"):
                make = with_root if kind == "root" else ext4_disk
                inner = make(path.with_name("inner"), size=START + (4 << 20)).read_bytes()
                file.seek(start)
                file.write(inner[START:])
            for signature in SIGNATURES:
                if signature.kind == kind:
                    file.seek(start + signature.offset)
                    file.write(signature.magic)
                    break
    return path


@pytest.mark.parametrize(
    ("kinds", "said", "hint"),
    [
        (("LUKS",), "no root file system of Linux: partition 1 has LUKS", "encrypted"),
        (("boot", "LVM"), "partition 1 has ext, partition 2 has LVM", "logical volumes"),
        (("ntfs", "ntfs"), "partition 1 has ntfs, partition 2 has ntfs", ""),
        (("ufs",), "partition 1 has ufs", ""),
        (("", ""), "partition 1 has nothing that is known", ""),
        (("root", "root"), "more than one root file system: on partition 1 and partition 2", ""),
    ],
)
def test_a_disk_without_one_root_says_what_it_has(
    tmp_path: Path, kinds: tuple[str, ...], said: str, hint: str
) -> None:
    disk = two_partitions(tmp_path / "disk", *kinds)
    with pytest.raises(ObuildError) as caught, root.of_raw(disk):
        pass
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_what_fstab_mounts_is_part_of_the_tree(tmp_path: Path) -> None:
    disk = two_partitions(tmp_path / "disk", "root", "root")
    place = f"{disk}?offset={8 << 20}"
    for command in ("rmdir etc", f"write {__file__} vmlinuz"):
        subprocess.run(["debugfs", "-w", "-R", command, place], check=True, capture_output=True)
    (tmp_path / "fstab").write_text("/dev/vda2 /boot ext4 defaults 0 0\n")
    for command in ("mkdir boot", f"write {tmp_path}/fstab etc/fstab"):
        argv = ["debugfs", "-w", "-R", command, f"{disk}?offset={4 << 20}"]
        subprocess.run(argv, check=True, capture_output=True)
    with root.of_raw(disk) as tree:
        assert tree.read("boot/vmlinuz") == Path(__file__).read_bytes()
        assert [node.path for node in tree.walk()] == [
            "",
            "boot",
            "boot/usr",
            "boot/vmlinuz",
            "etc",
            "etc/fstab",
            "usr",
        ]


PARTS = [Partition(1, 0, 0, "", "guid-1", "one"), Partition(2, 0, 0, "", "0badcafe-02", "two")]


def names(part: Partition) -> fstab.Names:
    return fstab.Names(f"uuid-{part.number}", f"label-{part.number}")


def test_lines_of_fstab() -> None:
    text = """
# a comment
UUID=UUID-1 / ext4 defaults 0 0
UUID="uuid-2" /a ext4
LABEL=label-2 /b/ ext4
PARTUUID=0BADCAFE-02 /c ext4
/dev/disk/by-partlabel/two /d\\040d ext4
/dev/nvme0n1p1 /e ext4
/dev/sda3 /f ext4
/dev/sdb2 /g ext4
/dev/nvme1n1p2 /h ext4
/dev/vda2 none swap
tmpfs /tmp tmpfs
short
"""
    found = fstab.mounts(text, PARTS, names)
    assert {path: part.number for path, part in found.items()} == {"a": 2, "b": 2, "c": 2, "d d": 2, "e": 1}


def test_lines_of_fstab_about_other_disks() -> None:
    text = """
UUID=stale / ext4 defaults 0 0
UUID=uuid-2 /here ext4
UUID=uuid-1 /again ext4 subvol=x
UUID=uuid-3 /data ext4 defaults 0 2
/dev/sdb1 /more ext4
/dev/mapper/vg-var /var xfs
server:/export /nfs nfs
//server/share /smb cifs
/srv/www /www none bind
UUID=uuid-4 /optional ext4 defaults,nofail 0 2
/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0
UUID=uuid-5 none swap sw 0 0
tmpfs /tmp tmpfs
proc /proc proc
"""
    assert fstab.absent(text, PARTS, names) == {
        "data": "UUID=uuid-3",
        "more": "/dev/sdb1",
        "var": "/dev/mapper/vg-var",
        "nfs": "server:/export",
        "smb": "//server/share",
        "www": "/srv/www",
    }


#: What a hostile or broken guest may have done to the one block of its root folder.
@pytest.mark.parametrize("name", [b"..x/../y", b"a/b", b"etc\0"])
def test_a_name_that_leads_elsewhere_is_damage(tmp_path: Path, name: bytes) -> None:
    disk = with_root(tmp_path / "disk", f"mkdir {'n' * len(name)}")
    data = disk.read_bytes()
    assert data.count(b"n" * len(name)) >= 1
    disk.write_bytes(data.replace(b"n" * len(name), name))
    with pytest.raises(ObuildError, match="is damaged"), root.of_raw(disk) as tree:
        assert not [*tree.walk()]


def test_two_files_of_one_name_and_a_folder_in_itself_are_damage(tmp_path: Path) -> None:
    disk = with_root(tmp_path / "disk", "mkdir aaaa", "mkdir bbbb")
    data = disk.read_bytes()
    disk.write_bytes(data.replace(b"bbbb", b"aaaa"))
    with pytest.raises(ObuildError, match="a wrong name in it, or one twice"), root.of_raw(disk) as tree:
        assert not [*tree.walk()]
    circle = with_root(tmp_path / "circle", "mkdir deep", "link <2> deep/up")
    with pytest.raises(ObuildError, match="is in two folders, or in itself"), root.of_raw(circle) as tree:
        assert not [*tree.walk()]


def test_a_tree_of_blocks_that_leads_back_is_damage(tmp_path: Path) -> None:
    """Blocks of pointers that are all the same one would have a billion more below them."""
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.seek(5 << 30)
        file.write(b"x")
    disk = made(tmp_path / "disk", 24, "mke2fs", "-q", "-F", "-t", "ext2", "-b", "4096")
    commands = f"write {source} file\nmkdir etc\nmkdir usr\n"
    subprocess.run(["debugfs", "-w", "-f", "-", disk], input=commands.encode(), check=True, capture_output=True)
    told = subprocess.run(["debugfs", "-R", "stat file", disk], capture_output=True, text=True, check=True).stdout
    (triple,) = re.findall(r"\(TIND\):([0-9]+)", told)
    number = int(triple)
    overwrite(disk, number * 4096, struct.pack("<I", number) * 1024)
    with root.of_raw(disk) as tree:
        found = tree.find("file")
        assert found is not None
        with pytest.raises(ObuildError, match=f"block {number} is in two places of a tree"):
            list(found.source.extents(found))


def test_a_folder_that_is_too_large_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, "_LARGEST_FOLDER", 4095)
    with (
        pytest.raises(ObuildError, match="the folder / is too large"),
        root.of_raw(with_root(tmp_path / "disk")),
    ):
        pass


def test_damage_anywhere_is_an_error_and_nothing_worse(tmp_path: Path) -> None:
    """Every byte of the tables may be wrong."""
    disk = with_root(tmp_path / "disk", "symlink etc/link target", size=START + (1 << 20))
    data = disk.read_bytes()
    ends = {"read": 0, "refused": 0}
    told = subprocess.check_output(["dumpe2fs", f"{disk}?offset={START}"])
    (first,) = re.findall(rb"Inode table at ([0-9]+)-", told)
    table = START + int(first) * 4096
    places = [*range(START + 1024, START + 1024 + 264), *range(table + 256, table + 512)]
    for place in (place for place in places if data[place]):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        disk.write_bytes(changed)
        try:
            with root.of_raw(disk) as tree:
                tar.write(tree, tmp_path / "tar")
            ends["read"] += 1
        except ObuildError:
            ends["refused"] += 1
    assert min(ends.values()) > 3
