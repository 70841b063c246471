"""The layout "mbr-grub": an MBR, GRUB unless QEMU loads the kernel, and one ext4 partition.

GRUB goes where the partition leaves room, so nothing is ever mounted or attached to a loop device. It is there for
x86_64 only. Other machines have their kernel loaded by QEMU (firmware = "kernel" in the card).

    byte 0          boot.img, GRUB's 440 bytes of the MBR; it loads sector 1
    byte 440        disk signature and partition table, by sfdisk
    byte 512        core.img: GRUB's own drivers; loads /boot/grub/grub.cfg
    byte 1 MiB      the one partition: ext4
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from obuild.bases.kind import File, Recipe
from obuild.bases.scratch.root_partition import SECTOR, START, disk_id
from obuild.errors import UsageError
from obuild.guests.profile import INITRD, KERNEL
from obuild.host import process, sfdisk

#: With "kernel", QEMU loads the kernel, and the disk gets no boot loader.
FIRMWARES: tuple[str, ...] = ("bios", "kernel")

PACKAGES: tuple[str, ...] = ()

TAKEN: tuple[str, ...] = ()

#: The size of the boot code in the MBR; the disk's signature and the partition table follow.
BOOT_CODE = 440

GRUB = Path("/usr/lib/grub/i386-pc")
GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "linux16", "normal")


def check_host(recipe: Recipe) -> None:
    """See `Layout.check_host`."""
    grub = recipe.card.firmware == "bios"
    if grub and recipe.card.arch != "x86_64":
        raise UsageError(
            f"{recipe.name}: a boot loader can be put on a disk for x86_64 only",
            hint='write firmware = "kernel" under [card]: then QEMU loads the kernel',
        )
    for program in ("sfdisk", *(["grub-mkimage"] if grub else [])):
        process.require(program)
    if grub:
        process.require_file(GRUB / "boot.img", "grub-pc-bin")


def root_size(size: int) -> int:
    """See `Layout.root_size`."""
    return size - START


def files(recipe: Recipe) -> tuple[File, ...]:
    """See `Layout.files`."""
    if recipe.card.firmware != "bios":
        return ()
    return (File("/boot/grub/grub.cfg", 0o644, grub_cfg(recipe, recipe.options.cmdline)),)


def take(recipe: Recipe) -> str:
    """See `Layout.take`."""
    return ""


def finish(recipe: Recipe) -> str:
    """See `Layout.finish`."""
    return ""


def beside(recipe: Recipe, work: Path) -> Mapping[str, Path]:
    """See `Layout.beside`."""
    if recipe.card.firmware == "bios":
        return {}
    return {suffix: work / f"boot{suffix}" for suffix in (KERNEL, INITRD)}


def partition_script(*, signature: int, size: int) -> str:
    """What sfdisk reads: one bootable Linux partition up to the end of a disk of `size` bytes."""
    start = START // SECTOR
    return (
        f"label: dos\nlabel-id: {signature:#010x}\nunit: sectors\n"
        f"start={start}, size={size // SECTOR - start}, type=83, bootable\n"
    )


def grub_cfg(recipe: Recipe, cmdline: str) -> str:
    """GRUB's configuration: no menu, no wait. /vmlinuz and /initrd.img are links to the newest kernel."""
    return f"linux16 /vmlinuz root=UUID={disk_id(recipe)} rw console=ttyS0 {cmdline}\ninitrd16 /initrd.img\nboot\n"


def grub_argv(core: Path) -> list[str | Path]:
    """The command that makes GRUB's core image, with all the drivers it needs to read its configuration."""
    return [
        *("grub-mkimage", "--format=i386-pc", f"--directory={GRUB}"),
        # The first partition of the disk that the BIOS booted.
        "--prefix=(,msdos1)/boot/grub",
        f"--output={core}",
        *GRUB_MODULES,
    ]


def install_grub(disk: Path, *, boot: bytes, core: bytes) -> None:
    """Write GRUB around the partition table of `disk`.

    Nothing in either image needs patching: boot.img loads sector 1 of the disk it was started from, and
    the first sector of core.img expects the rest behind itself.
    """
    if SECTOR + len(core) > START:
        raise UsageError(f"GRUB's core image has {len(core)} bytes and does not fit before the partition")
    with disk.open("r+b") as file:
        file.write(boot[:BOOT_CODE])
        file.seek(SECTOR)
        file.write(core)


def make_bootable(recipe: Recipe, disk: Path, work: Path) -> None:
    """See `Layout.make_bootable`."""
    script = partition_script(signature=disk_id(recipe).fields[0], size=disk.stat().st_size)
    sfdisk.write(disk, script)
    if recipe.card.firmware != "bios":
        return
    core = work / "core.img"
    process.run(grub_argv(core))
    install_grub(disk, boot=(GRUB / "boot.img").read_bytes(), core=core.read_bytes())
