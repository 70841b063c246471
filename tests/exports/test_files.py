"""The files of a layer as a tar file, a folder and a squashfs image."""

from __future__ import annotations

import gzip
import lzma
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from obuild.errors import UsageError
from obuild.exports.disk import Disk
from obuild.exports.formats import files
from obuild.guests.profile import Card
from obuild.host.trees import root
from obuild.host.trees.folder import Folder
from obuild.host.trees.nodes import Tree, content
from obuild.plan.keys import LayerId
from tests.support.disks import ext4_disk

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to their owners")


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A disk with a setuid program of another user, a link, a device, a file with holes, and odd times."""
    (tmp_path / "su").write_bytes(os.urandom(200_000))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"data")
    commands = [
        *("mkdir etc", "mkdir usr", f"write {tmp_path}/su usr/su", "symlink su usr/su", "mknod null c 1 3"),
        *("set_inode_field usr/su mode 0104755", "set_inode_field usr/su uid 1234", "symlink usr/link su"),
        *(f"write {tmp_path}/sparse usr/sparse", "set_inode_field etc mtime @-1", "mkdir -with-dash"),
    ]
    (tmp_path / "work").mkdir()
    path = ext4_disk(tmp_path / "work/disk.raw", *commands, size=8 << 20)
    return Disk(path, path.stat().st_size, LayerId("5" * 64), Card())


def seen(tree: Tree) -> Iterator[tuple[object, ...]]:
    """What of a tree every form of it keeps."""
    for node in tree.walk():
        data = content(node) if node.is_file else b""
        target = node.source.target(node) if node.is_link else ""
        size = 0 if node.is_folder else node.size
        yield node.path, node.mode, node.uid, node.gid, size, node.mtime, node.device, data, target


@ROOT
def test_a_folder_has_the_files_of_the_layer(disk: Disk, tmp_path: Path) -> None:
    files.write_folder(disk, tmp_path / "out")
    with root.of_raw(disk.path) as tree:
        assert [*seen(Tree({"": Folder(tmp_path / "out")}))] == [*seen(tree)]


@ROOT
def test_a_squashfs_image_has_the_files_of_the_layer(disk: Disk, tmp_path: Path) -> None:
    files.write_squashfs(disk, tmp_path / "squashfs")
    subprocess.run(["unsquashfs", "-quiet", "-dest", tmp_path / "out", tmp_path / "squashfs"], check=True)
    with root.of_raw(disk.path) as tree:
        expected = {row[0]: row for row in seen(tree)}
    found = {row[0]: row for row in seen(Tree({"": Folder(tmp_path / "out")}))}
    # Its root has a time that is the newest, and it has no room for times before 1970.
    assert {path for path in expected if found[path] != expected[path]} <= {"", "etc"}
    assert found.keys() == expected.keys()


def test_a_squashfs_image_does_not_tell_when_and_by_whom_it_was_made(disk: Disk, tmp_path: Path) -> None:
    files.write_squashfs(disk, tmp_path / "squashfs")
    newest = files.tar_of(disk).stat().st_mtime
    told = subprocess.check_output(["unsquashfs", "-lln", tmp_path / "squashfs"], text=True, env={"TZ": "UTC"})
    assert told.splitlines()[0].startswith("drwxr-xr-x 0/0 ")
    superblock = (tmp_path / "squashfs").read_bytes()[:96]
    assert int.from_bytes(superblock[8:12], "little") == int(newest)


@pytest.mark.parametrize(
    ("write", "unpack"),
    [
        (files.write_gz, gzip.decompress),
        (files.write_xz, lzma.decompress),
        (files.write_zst, lambda data: subprocess.run(["zstd", "-dc"], input=data, capture_output=True).stdout),
    ],
)
def test_a_compressed_tar_file_unpacks_to_the_tar_file(
    disk: Disk, tmp_path: Path, write: Callable[[Disk, Path], None], unpack: Callable[[bytes], bytes]
) -> None:
    write(disk, tmp_path / "packed")
    files.write_tar(disk, tmp_path / "tar")
    assert unpack((tmp_path / "packed").read_bytes()) == (tmp_path / "tar").read_bytes()


@pytest.mark.parametrize("os", ["windows", "freebsd"])
def test_a_layer_of_another_system_is_refused(os: str) -> None:
    with pytest.raises(
        UsageError, match=f"only the files of a Linux layer can be exported, and this one has {os}"
    ):
        files.check(0, Card(os=os))


def test_a_folder_is_refused_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="only root can export to a folder") as caught:
        files.check_root(0, Card())
    assert "--type tar" in caught.value.hint
