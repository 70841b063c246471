"""FAT file systems are read as mtools write them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from obuild.errors import ObuildError
from obuild.host.blocks import Bytes, raw_file
from obuild.host.partitions import Partition, kind
from obuild.host.trees import fat, file_systems
from obuild.host.trees.fat import Fat
from obuild.host.trees.nodes import Node, Tree, content

START = 1 << 20
TIME = 1_700_000_000
FILES = {
    "EFI/BOOT/BOOTX64.EFI": os.urandom(100_000),
    "EFI/debian/a name that is long and has an ümlaut.cfg": b"set root\n",
    "lower.txt": b"lower",
    "Mixed.Case": b"",
}


@pytest.fixture(params=[("1440",), ("32M",), ("40M", "-F")], ids=["FAT12", "FAT16", "FAT32"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A raw disk with a FAT file system at START, which has FILES in it."""
    size, *options = request.param
    sectors = 2880 if size == "1440" else int(size[:-1]) << 11
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(START + sectors * 512)
    where = f"{path}@@{START}"
    env = {**os.environ, "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"}
    shape = ("-T", str(sectors), "-N", "1234abcd", "-v", "esp", *(["-c", "1"] if options else []))
    subprocess.run(["mformat", "-i", where, *shape, *options, "::"], check=True, env=env)
    for name, data in FILES.items():
        file_path = tmp_path / "files" / name
        file_path.parent.mkdir(parents=True, exist_ok=True)
        file_path.write_bytes(data)
        os.utime(file_path, (TIME, TIME))
    for folder in ("EFI", "lower.txt", "Mixed.Case"):
        subprocess.run(["mcopy", "-s", "-m", "-i", where, tmp_path / "files" / folder, "::"], check=True, env=env)
    subprocess.run(["mcopy", "-i", where, tmp_path / "files/lower.txt", "::GONE"], check=True, env=env)
    subprocess.run(["mdel", "-i", where, "::GONE"], check=True, env=env)
    return path


def files(tree: Tree) -> Iterator[Node]:
    return (node for node in tree.walk() if node.is_file)


def test_files_are_those_that_were_written(disk: Path) -> None:
    with raw_file(disk) as blocks:
        assert kind(blocks, START) == "vfat"
        tree = Tree({"": Fat(blocks, START)})
        assert {node.path: content(node) for node in files(tree)} == FILES
        for node in files(tree):
            assert (node.mode, node.uid, node.gid, node.mtime) == (0o100755, 0, 0, TIME)
            assert sum(length for _, length in node.source.extents(node)) == node.size
        assert tree.read("EFI/debian/../BOOT/BOOTX64.EFI") == FILES["EFI/BOOT/BOOTX64.EFI"]
        mounted = Tree({"": tree.root().source, "EFI": tree.root().source})
        assert mounted.read("EFI/lower.txt") == b"lower"
        part = Partition(1, START, 0)
        assert file_systems.names(blocks, part, "vfat") == ("1234-ABCD", "esp")


def test_free_clusters_are_those_that_mdir_counts(disk: Path) -> None:
    told = subprocess.check_output(["mdir", "-i", f"{disk}@@{START}", "::"], text=True).splitlines()[-2]
    with raw_file(disk) as blocks:
        runs = fat.free(blocks, START)
        system = Fat(blocks, START)
        parts = [place for node in files(Tree({"": system})) for place in system.places(node)]
    assert sum(length for _, length in runs) == int(told.removesuffix("bytes free").replace(" ", ""))
    assert not any(at < place + size and place < at + length for at, length in runs for _, place, size in parts)
    assert b"lower" in b"".join(disk.read_bytes()[at : at + length] for at, length in runs)  # that of GONE


@pytest.mark.parametrize("disk", [("1440",)], ids=["FAT12"], indirect=True)
def test_damage_is_an_error(disk: Path) -> None:
    """Every byte of the first sector and of the tables may be wrong."""
    data = disk.read_bytes()
    ends = {"read": 0, "refused": 0}
    places = [*range(START + 11, START + 50), *range(START + 512, START + 512 + 400, 7)]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 0xFF
        try:
            for node in files(Tree({"": Fat(Bytes(bytes(changed)), START)})):
                for _ in node.source.pieces(node):
                    pass
            ends["read"] += 1
        except ObuildError:
            ends["refused"] += 1
    assert min(ends.values()) > 3


def test_a_chain_without_an_end_is_an_error(disk: Path) -> None:
    with raw_file(disk) as blocks:
        system = Fat(blocks, START)
        file = Tree({"": system}).find("EFI/BOOT/BOOTX64.EFI")
        assert file is not None
        first = int.from_bytes(file.raw, "little")
        system._next = lambda cluster: first  # type: ignore[method-assign]
        with pytest.raises(ObuildError, match="is damaged"):
            list(system.pieces(file._replace(size=1 << 40)))
