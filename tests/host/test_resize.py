"""Disks grow and shrink with their last file system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from obuild.errors import ObuildError, UsageError
from obuild.host import resize, sfdisk
from obuild.host.blocks import raw_file
from obuild.host.partitions import Partition, partitions
from tests.support.disks import START, by_hand, ext4_disk, made, partitioned

MIB = 1 << 20
BOOT = bytes(range(200)) * 2
ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"


def same(one: Path, other: Path) -> bool:
    return subprocess.run(["cmp", "--quiet", one, other]).returncode == 0


def free_of(disk: Path, start: int = START) -> tuple[int, int]:
    """The size of a file system and its free space in bytes; it must be without errors."""
    place = f"{disk}?offset={start}"
    subprocess.run(["e2fsck", "-f", "-n", place], check=True, capture_output=True)
    told = subprocess.check_output(["dumpe2fs", "-h", place], text=True, stderr=subprocess.DEVNULL)
    known = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    block = int(known["Block size"])
    return int(known["Block count"]) * block, int(known["Free blocks"]) * block


def content(disk: Path, name: str, start: int = START) -> bytes:
    return subprocess.check_output(["debugfs", "-R", f"cat {name}", f"{disk}?offset={start}"])


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    (tmp_path / "data").write_bytes(os.urandom(3 * MIB))
    return (tmp_path / "data").read_bytes()


def boot_code(disk: Path) -> None:
    """Give a disk the boot code BOOT."""
    with disk.open("r+b") as file:
        file.write(BOOT)


def table(disk: Path) -> list[Partition]:
    with raw_file(disk) as blocks:
        return partitions(blocks)


def head(disk: Path) -> bytes:
    with disk.open("rb") as file:
        return file.read(len(BOOT))


@pytest.fixture
def plain(tmp_path: Path, data: bytes) -> Path:
    """A disk with an MBR, boot code, and a file system with a file."""
    disk = ext4_disk(tmp_path / "disk.raw", f"write {tmp_path / 'data'} data", size=200 * MIB)
    boot_code(disk)
    return disk


@pytest.fixture
def uefi(tmp_path: Path, data: bytes) -> Path:
    """A disk with a GPT: partition 14 for a BIOS, then the root, then an EFI system partition."""
    source = ext4_disk(tmp_path / "source.raw", f"write {tmp_path / 'data'} data", size=180 * MIB)
    disk = tmp_path / "disk 1.raw"
    subprocess.run(["dd", f"if={source}", f"of={disk}", "bs=1M", "skip=1", "seek=4", "conv=sparse"], check=True)
    os.truncate(disk, 200 * MIB)
    table = (
        "label: gpt\nlabel-id: 11111111-1111-1111-1111-111111111111\nfirst-lba: 34\n"
        "14 : start=2048, size=6144, type=21686148-6449-6E6F-744E-656564454649\n"
        "1 : start=8192, size=366592, type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709, name=root\n"
        f"2 : start=374784, size=20480, type={ESP}, name=esp, uuid=22222222-2222-2222-2222-222222222222\n"
    )
    subprocess.run(["sfdisk", "--quiet", "--wipe=never", disk], input=table.encode(), check=True)
    boot_code(disk)
    with disk.open("r+b") as file:
        file.seek(374784 * 512)
        file.write(data)
    return disk


def test_a_disk_grows_with_its_partition_and_file_system(plain: Path, data: bytes) -> None:
    before = free_of(plain)
    resize.grow(plain, 1024 * MIB - 5)
    assert plain.stat().st_size == 1024 * MIB
    assert plain.stat().st_blocks * 512 < 64 * MIB
    size, free = free_of(plain)
    assert size == 1023 * MIB
    assert free > before[1] + 700 * MIB
    assert content(plain, "data") == data
    assert head(plain) == BOOT
    (part,) = table(plain)
    assert (part.number, part.start, part.size, part.type) == (1, START, 1023 * MIB, "83")
    assert "bootable" in sfdisk.script(plain)
    assert "label-id: 0x12345678" in sfdisk.script(plain)


def test_a_disk_shrinks_to_what_is_used(plain: Path, data: bytes) -> None:
    resize.shrink(plain)
    assert plain.stat().st_size < 100 * MIB
    size, free = free_of(plain)
    assert START + size == plain.stat().st_size
    assert free >= resize.SLACK
    assert content(plain, "data") == data
    assert head(plain) == BOOT


def test_a_disk_that_is_small_already_does_not_shrink(tmp_path: Path) -> None:
    disk = ext4_disk(tmp_path / "disk.raw", size=resize.SLACK)
    before = disk.read_bytes()
    resize.shrink(disk)
    assert disk.read_bytes() == before
    assert list(tmp_path.iterdir()) == [disk]


@pytest.mark.parametrize("how", ["grow", "shrink"])
def test_an_efi_system_partition_stays_behind_the_root(uefi: Path, data: bytes, how: str) -> None:
    script = sfdisk.script(uefi)
    if how == "grow":
        resize.grow(uefi, 203 * MIB)  # the partition's old place and its new one overlap
    else:
        resize.shrink(uefi)
    subprocess.run(["sfdisk", "--verify", uefi], check=True, capture_output=True)
    size = uefi.stat().st_size
    assert size == 203 * MIB if how == "grow" else size < 120 * MIB
    root, esp, bios = table(uefi)
    assert (bios.start, bios.size, root.start) == (MIB, 3 * MIB, 4 * MIB)
    assert (esp.number, esp.size, esp.start, esp.type) == (2, 10 * MIB, size - 11 * MIB, ESP)
    assert root.start + root.size == esp.start
    assert free_of(uefi, root.start)[0] == root.size
    assert content(uefi, "data", root.start) == data
    with uefi.open("rb") as file:
        file.seek(esp.start)
        assert file.read(len(data)) == data
    assert head(uefi) == BOOT
    ids = [part.split(",")[3:] for part in script.splitlines() if "uuid" in part]
    assert ids == [part.split(",")[3:] for part in sfdisk.script(uefi).splitlines() if "uuid" in part]


def test_a_file_system_without_a_partition_grows(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", disk, "16M"], check=True)
    resize.grow(disk, 64 * MIB)
    assert free_of(disk, 0)[0] == disk.stat().st_size == 64 * MIB


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize(("kind", "least"), [("xfs", 320), ("btrfs", 120)])
def test_what_linux_itself_has_to_grow(tmp_path: Path, data: bytes, kind: str, least: int) -> None:
    system = made(tmp_path / "root", least, f"mkfs.{kind}", "-q")
    with by_hand(system, kind) as place:
        (place / "data").write_bytes(data)
    disk = partitioned(tmp_path / "disk.raw", system)
    resize.grow(disk, 700 * MIB)
    (part,) = table(disk)
    assert (part.start, part.size, disk.stat().st_size) == (START, 699 * MIB, 700 * MIB)
    with by_hand(disk, kind, f"loop,offset={START}") as place:
        assert (place / "data").read_bytes() == data
        assert os.statvfs(place).f_blocks * os.statvfs(place).f_frsize > 550 * MIB
    before = disk.stat().st_mtime_ns
    with pytest.raises(UsageError, match=f"the file system is {kind}, and only ext can be made smaller"):
        resize.shrink(disk)
    assert disk.stat().st_mtime_ns == before
    assert "disk.raw" not in Path("/proc/mounts").read_text()


def test_only_root_can_resize_xfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = partitioned(tmp_path / "disk.raw", made(tmp_path / "root", 320, "mkfs.xfs", "-q"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="partition 1 holds xfs, which only root can resize"):
        resize.grow(disk, 700 * MIB)
    assert disk.stat().st_size < 400 * MIB


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_an_xfs_that_is_damaged_stays_as_it_is(tmp_path: Path) -> None:
    system = made(tmp_path / "root", 320, "mkfs.xfs", "-q")
    with system.open("r+b") as file:
        file.seek(8)
        file.write(b"\xff" * 64)
    disk = partitioned(tmp_path / "disk.raw", system)
    with pytest.raises(ObuildError, match="the xfs file system cannot be resized"):
        resize.grow(disk, 700 * MIB)
    assert disk.stat().st_size < 400 * MIB
    assert sorted(each.name for each in tmp_path.iterdir()) == ["disk.raw", "root"]


def test_the_same_disk_gives_the_same_bytes(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.raw"
    subprocess.run(["cp", plain, other], check=True)
    resize.grow(plain, 256 * MIB)
    resize.shrink(plain)
    monkeypatch.setenv("PATH", f"{fake_clock(tmp_path)}:{os.environ['PATH']}")
    resize.grow(other, 256 * MIB)
    resize.shrink(other)
    assert same(plain, other)


def fake_clock(folder: Path) -> Path:
    """A folder with the programs that may look at the clock, which see another day."""
    made = folder / "bin"
    made.mkdir()
    for program in ("e2fsck", "resize2fs", "sfdisk"):
        (made / program).write_text(f'#!/bin/sh\nexec faketime "2031-02-03 04:05:06" /usr/sbin/{program} "$@"\n')
        (made / program).chmod(0o755)
    return made


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (["mkswap"], "partition 1 holds swap, and only ext, xfs, btrfs can be resized"),
        (["mksquashfs", "/etc/hostname"], "partition 1 holds squashfs,"),
        ([], "partition 1 holds nothing that is known,"),
    ],
)
def test_what_cannot_be_resized_is_named(tmp_path: Path, made: list[str], said: str) -> None:
    disk, part = tmp_path / "disk.raw", tmp_path / "part"
    os.truncate(os.open(disk, os.O_CREAT | os.O_WRONLY), 32 * MIB)
    subprocess.run(["sfdisk", "--quiet", disk], input=b"label: gpt\nstart=2048, size=40960\n", check=True)
    if made:
        os.truncate(os.open(part, os.O_CREAT | os.O_WRONLY), 20 * MIB)
        last = ["-noappend", "-quiet", "-no-progress"] if made[0] == "mksquashfs" else []
        subprocess.run([*made, part, *last], check=True, capture_output=True)
        subprocess.run(["dd", f"if={part}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc"], check=True)
    before = disk.read_bytes()
    with pytest.raises(UsageError) as caught:
        resize.grow(disk, 64 * MIB)
    assert caught.value.message.startswith(said)
    with pytest.raises(UsageError) as caught:
        resize.shrink(disk)
    assert caught.value.message.startswith(said)
    assert disk.read_bytes() == before


def test_a_logical_partition_is_refused(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    os.truncate(os.open(disk, os.O_CREAT | os.O_WRONLY), 32 * MIB)
    table = b"label: dos\nstart=2048, type=5\nstart=4096, type=83\n"
    subprocess.run(["sfdisk", "--quiet", disk], input=table, check=True)
    with pytest.raises(UsageError, match="partition 5 is a logical one"):
        resize.grow(disk, 64 * MIB)


def test_a_disk_does_not_grow_to_less(plain: Path) -> None:
    with pytest.raises(UsageError, match=r"a disk of 200\.0 MiB cannot grow to 100\.0 MiB"):
        resize.grow(plain, 100 * MIB)


def test_a_damaged_file_system_is_named(plain: Path) -> None:
    with plain.open("r+b") as file:  # the root folder
        at = subprocess.check_output(["debugfs", "-R", "blocks /", f"{plain}?offset={START}"])
        file.seek(START + int(at) * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(ObuildError, match=r"the file system of partition 1 is damaged: e2fsck cannot"):
        resize.shrink(plain)
