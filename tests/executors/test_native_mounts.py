"""Odd disks: what native steps mount, and what they refuse. No guest runs, and no image is made."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from obuild.errors import MachineError, ObuildError, UsageError
from obuild.executors.native import mounts, namespace
from obuild.executors.native.namespace import Namespace
from obuild.host.process import CancelScope
from obuild.host.trees import root
from tests.support.disks import START, by_hand, ext4_disk, flushed, made, partitioned

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")

Mount = Callable[[Path], AbstractContextManager[Path]]


@pytest.fixture(scope="module")
def inside() -> Iterator[Namespace]:
    with namespace.opened(CancelScope()) as opened:
        yield opened


@pytest.fixture
def mounted(inside: Namespace, tmp_path: Path) -> Mount:
    """Mount a raw disk as a step does; the root is at the path that this yields."""
    top = tmp_path / "top"
    top.mkdir()

    @contextmanager
    def mount(disk: Path) -> Iterator[Path]:
        there = mounts.mount(inside, disk, top)
        try:
            yield inside.path(there.root)
            there.close()
        finally:
            there.unmount()

    return mount


def root_tree(top: Path, fstab: str = "") -> Path:
    for name in ("etc", "usr", "boot", "home"):
        (top / name).mkdir(parents=True)
    (top / "etc/fstab").write_text(fstab)
    return top


@pytest.fixture
def bootable(tmp_path: Path) -> Path:
    """A disk with an EFI system partition and /boot, which its fstab mounts."""
    efi = made(tmp_path / "efi", 4, "mformat", "-v", "EFI", "-N", "12345678", "-i")
    boot = made(tmp_path / "boot", 4, "mke2fs", "-q", "-t", "ext4", "-L", "boot")
    with by_hand(boot, "ext4") as place:
        (place / "efi").mkdir()
    fstab = "UUID=1234-5678 /boot/efi vfat umask=0077 0 1\nLABEL=boot /boot ext4 defaults 0 2\n"
    tree = root_tree(tmp_path / "tree", fstab)
    (tree / "link").symlink_to("/boot/efi")
    system = made(tmp_path / "root", 8, "mke2fs", "-q", "-t", "ext4", "-d", tree)
    return partitioned(tmp_path / "disk", efi, boot, system)


#: mount(8) would load the module.
VFAT = subprocess.run("grep -qw vfat /proc/filesystems || modprobe -q vfat", shell=True).returncode == 0


@pytest.mark.skipif(not VFAT, reason="this kernel has no vfat")
def test_what_fstab_mounts_is_mounted(mounted: Mount, bootable: Path) -> None:
    with mounted(bootable) as top:
        (top / "boot/vmlinuz").write_text("kernel")
        (top / "boot/efi/loader").write_text("loader")
        (top / "home/file").write_text("home")
    with root.of_raw(bootable) as read:
        found = [read.read(path) for path in ("boot/vmlinuz", "link/loader", "home/file")]
    assert found == [b"kernel", b"loader", b"home"]


@pytest.mark.skipif(VFAT, reason="this kernel has vfat")
def test_a_file_system_that_the_kernel_does_not_know(mounted: Mount, bootable: Path) -> None:
    with pytest.raises(ObuildError, match="partition 1 cannot be mounted") as caught, mounted(bootable):
        pass
    assert caught.value.hint == "this host's kernel has no vfat: modprobe vfat"


def test_a_partition_for_boot_is_mounted(mounted: Mount, tmp_path: Path) -> None:
    boot = made(tmp_path / "boot", 4, "mke2fs", "-q", "-t", "ext4", "-L", "boot")
    tree = root_tree(tmp_path / "tree", "LABEL=boot /boot ext4 defaults 0 2\n")
    system = made(tmp_path / "root", 8, "mke2fs", "-q", "-t", "ext4", "-d", tree)
    disk = partitioned(tmp_path / "disk", boot, system)
    with mounted(disk) as top:
        (top / "boot/vmlinuz").write_text("kernel")
    with by_hand(disk, "ext4", f"loop,offset={START}") as place:
        assert (place / "vmlinuz").read_text() == "kernel"


def with_fstab(folder: Path, fstab: str) -> Path:
    """A disk whose only partition has a root with this fstab."""
    tree = root_tree(folder / "tree", fstab)
    return partitioned(folder / "disk", made(folder / "root", 8, "mke2fs", "-q", "-t", "ext4", "-d", tree))


def test_other_disks_that_the_guest_mounts_are_told(inside: Namespace, tmp_path: Path) -> None:
    disk = with_fstab(tmp_path, "LABEL=data /home ext4 defaults 0 2\n/dev/sdb1 /var/log ext4\n")
    (tmp_path / "top").mkdir()
    there = mounts.mount(inside, disk, tmp_path / "top")
    there.unmount()
    assert there.absent == (("home", "LABEL=data"), ("var/log", "/dev/sdb1"))


def test_a_system_on_two_disks_is_refused(mounted: Mount, tmp_path: Path) -> None:
    disk = with_fstab(tmp_path, "LABEL=data /home ext4\n/dev/sdb1 /var ext4 defaults 0 2\n")
    with (
        pytest.raises(UsageError, match="fstab mounts /var from /dev/sdb1, which is not on its disk") as caught,
        mounted(disk),
    ):
        pass
    assert "nofail" in caught.value.hint


def test_a_mount_point_that_is_a_link_stays_in_the_guest(mounted: Mount, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    tree = root_tree(tmp_path / "tree", "/dev/sda2 /boot ext4 defaults 0 2\n")
    (tree / "boot").rmdir()
    (tree / "boot").symlink_to(outside)
    (tree / str(outside)[1:]).mkdir(parents=True)
    system = made(tmp_path / "root", 8, "mke2fs", "-q", "-t", "ext4", "-d", tree)
    boot = made(tmp_path / "boot", 4, "mke2fs", "-q", "-t", "ext4")
    with mounted(partitioned(tmp_path / "disk", system, boot)) as top:
        assert os.listdir(outside) == []
        assert os.listdir(top / str(outside)[1:]) == ["lost+found"]


def test_a_root_on_xfs(mounted: Mount, tmp_path: Path) -> None:
    system = made(tmp_path / "root", 320, "mkfs.xfs", "-q")
    with by_hand(system, "xfs") as place:
        root_tree(place)
    disk = partitioned(tmp_path / "disk", system)
    with mounted(disk) as top:
        (top / "home/file").write_text("xfs")
    with root.of_raw(disk) as read:
        assert read.read("home/file") == b"xfs"


def test_the_subvolumes_of_btrfs(mounted: Mount, tmp_path: Path) -> None:
    system = made(tmp_path / "root", 120, "mkfs.btrfs", "-q", "-L", "all")
    with by_hand(system, "btrfs") as place:
        for name in ("@", "@home"):
            subprocess.run(["btrfs", "-q", "subvolume", "create", place / name], check=True)
        root_tree(place / "@", "LABEL=all / btrfs subvol=@ 0 0\nLABEL=all /home btrfs subvol=/@home,ro 0 0\n")
    disk = partitioned(tmp_path / "disk", system)
    with mounted(disk) as top:
        (top / "usr/file").write_text("root")
        (top / "home/file").write_text("home")
    with by_hand(disk, "btrfs", f"loop,offset={START}") as place:
        assert (place / "@/usr/file").read_text() == "root"
        assert (place / "@home/file").read_text() == "home"


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_journal_that_was_not_finished_is_replayed(mounted: Mount, tmp_path: Path, kind: str) -> None:
    options = ("mke2fs", "-q", "-t", "ext4") if kind == "ext4" else (f"mkfs.{kind}", "-q")
    disk = partitioned(tmp_path / "disk", made(tmp_path / "root", 320, *options))
    with by_hand(disk, kind, f"loop,offset={START}") as place:
        root_tree(place)
        subprocess.run(["sync", "--file-system", place], check=True)
        flushed(place / "file", "journal")
        crashed = tmp_path / "crashed"
        shutil.copyfile(disk, crashed)
    with pytest.raises(UsageError, match="partition 1: the file system was not unmounted"), root.of_raw(crashed):
        pass
    with mounted(crashed) as top:
        assert (top / "file").read_text() == "journal"
    with root.of_raw(crashed) as read:
        assert read.read("file") == b"journal"


@pytest.mark.parametrize(
    ("commands", "said"),
    [
        (["ssv state 2"], "partition 1 has errors"),
        (["feature ^has_journal", "ssv state 0"], "partition 1 was not unmounted and has no journal"),
    ],
)
def test_a_file_system_that_fsck_would_repair_is_refused(
    mounted: Mount, tmp_path: Path, commands: list[str], said: str
) -> None:
    disk = ext4_disk(tmp_path / "disk", "mkdir etc", "mkdir usr", *commands)
    with pytest.raises(MachineError, match=said) as caught, mounted(disk):
        pass
    assert "e2fsck repairs it" in caught.value.hint


def test_a_step_in_which_the_kernel_finds_damage_fails(mounted: Mount, tmp_path: Path) -> None:
    disk = ext4_disk(tmp_path / "disk", "mkdir etc", "mkdir usr", "mkdir usr/bad", "clri usr/bad")
    with (
        pytest.raises(MachineError, match="partition 1 has errors"),
        mounted(disk) as top,
        suppress(OSError),
    ):
        list((top / "usr/bad").iterdir())


@pytest.mark.parametrize(
    ("type", "kind", "said", "hint"),
    [
        ("8e", b"", "partition 1 has nothing that is known", ""),
        ("8e", bytes(512) + b"LABELONE", "partition 1 has LVM", "logical volumes"),
        ("83", b"LUKS\xba\xbe", "partition 1 has LUKS", "encrypted disks"),
        ("fd", b"", "partition 1 has linux_raid_member", "RAID is not read"),
    ],
)
def test_a_disk_without_a_root_says_what_it_has(
    mounted: Mount, tmp_path: Path, type: str, kind: bytes, said: str, hint: str
) -> None:
    inner = tmp_path / "inner"
    inner.write_bytes(kind.ljust(1 << 20, b"\0"))
    with (
        pytest.raises(UsageError, match=said) as caught,
        mounted(partitioned(tmp_path / "disk", inner, type=type)),
    ):
        pass
    assert hint in caught.value.hint


def test_a_member_of_a_mirror_is_not_a_root(mounted: Mount, tmp_path: Path) -> None:
    """Its file system looks like any other: the mark of the RAID is at its end."""
    system = made(tmp_path / "root", 8, "mke2fs", "-q", "-t", "ext4", "-d", root_tree(tmp_path / "tree"))
    with (
        pytest.raises(UsageError, match="partition 1 has linux_raid_member"),
        mounted(partitioned(tmp_path / "disk", system, type="fd")),
    ):
        pass


def test_two_roots_are_refused(mounted: Mount, tmp_path: Path) -> None:
    system = made(tmp_path / "root", 8, "mke2fs", "-q", "-t", "ext4", "-d", root_tree(tmp_path / "tree"))
    with (
        pytest.raises(UsageError, match="more than one root file system: on partition 1 and partition 2"),
        mounted(partitioned(tmp_path / "disk", system, system)),
    ):
        pass
