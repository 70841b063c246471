"""The layout "gpt-uki": the root as ext4, and behind it an EFI system partition with a unified kernel image.

    byte 0          protective MBR and GPT
    byte 1 MiB      partition 1: the root
    end - 129 MiB   partition 2: the EFI system partition
    end - 1 MiB     the GPT's copy

UEFI starts the kernel itself: there is no boot loader, and no file of the root is read before the kernel runs.
systemd's stub comes from the guest's own package, so it is for the guest's architecture, and the image does not
depend on this host's version.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from obuild.bases.kind import File, Recipe
from obuild.bases.scratch import esp, gpt, uki
from obuild.bases.scratch.gpt import Partition
from obuild.bases.scratch.root_partition import START, disk_id, part_id
from obuild.errors import UsageError
from obuild.guests.profile import INITRD, KERNEL
from obuild.host import process
from obuild.host.partitions import ESP_TYPE, ROOT_TYPES

FIRMWARES: tuple[str, ...] = ("uefi",)

PACKAGES: tuple[str, ...] = ("systemd-boot-efi",)

#: In bytes: no kernel with its drivers is smaller.
SMALLEST_ROOT = 64 << 20

#: What the hook moves out of the root, besides the kernel.
STUB, OS_RELEASE = "stub", "os-release"

#: The serial port that Linux shows its messages on.
CONSOLES = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}

TAKEN: tuple[str, ...] = (STUB, OS_RELEASE)


def check_host(recipe: Recipe) -> None:
    """See `Layout.check_host`."""
    if recipe.card.arch not in esp.LOADERS:
        raise UsageError(
            f"{recipe.name}: obuild cannot make a disk for UEFI on {recipe.card.arch}",
            hint=f'it can for {", ".join(esp.LOADERS)}; elsewhere, write firmware = "kernel" under [card]',
        )
    if root_size(recipe.size) < SMALLEST_ROOT:
        smallest = (recipe.size - root_size(recipe.size) + SMALLEST_ROOT) >> 20
        raise UsageError(
            f"{recipe.name}: size is {recipe.size >> 20}M, and layout {recipe.options.layout!r} needs {smallest}M",
            hint=f"the EFI system partition takes {esp.SIZE >> 20}M of it",
        )
    for program in ("sfdisk", *esp.PROGRAMS):
        process.require(program)


def root_size(size: int) -> int:
    """See `Layout.root_size`."""
    return size - START - esp.SIZE - gpt.END


def files(recipe: Recipe) -> tuple[File, ...]:
    """See `Layout.files`."""
    return ()


def take(recipe: Recipe) -> str:
    """See `Layout.take`."""
    return f"""\
cat "$root"/usr/lib/systemd/boot/efi/linux*.efi.stub >{{here}}/{STUB}
cat "$root/usr/lib/os-release" >{{here}}/{OS_RELEASE}
"""


def finish(recipe: Recipe) -> str:
    """See `Layout.finish`."""
    return ""


def make_bootable(recipe: Recipe, disk: Path, work: Path) -> None:
    """See `Layout.make_bootable`."""
    console = f"console={CONSOLES[recipe.card.arch]}"
    cmdline = f"root=UUID={disk_id(recipe)} rw {console} {recipe.options.cmdline}".strip()
    image = work / "uki.efi"
    initrd = (work / f"boot{INITRD}").read_bytes()
    image.write_bytes(uki.build((work / STUB).read_bytes(), sections(work, cmdline, initrd)))
    size = disk.stat().st_size
    root = Partition("root", START, root_size(size), ROOT_TYPES[recipe.card.arch], part_id(recipe, "root"))
    system = Partition("esp", root.end, esp.SIZE, ESP_TYPE, part_id(recipe, "esp"))
    gpt.write(disk, disk_id(recipe), (root, system))
    epoch = int((work / "epoch").read_text())
    esp.write(disk, start=system.start, arch=recipe.card.arch, program=image, identity=system.id, epoch=epoch)


def beside(recipe: Recipe, work: Path) -> Mapping[str, Path]:
    """See `Layout.beside`."""
    return {}


def sections(work: Path, cmdline: str, initrd: bytes) -> dict[str, bytes]:
    """The sections of a unified kernel image of the kernel that the hook has taken out."""
    return {
        ".osrel": (work / OS_RELEASE).read_bytes(),
        ".cmdline": cmdline.encode(),
        ".initrd": initrd,
        ".linux": (work / f"boot{KERNEL}").read_bytes(),
    }
