"""An ISO 9660 image that boots by BIOS and by UEFI, from a CD and from a USB stick, with GRUB.

One image has four ways in: El Torito entries for both kinds of firmware (from a CD), boot code in its first sector
(BIOS, from a stick), and an EFI system partition in its GPT (UEFI, from a stick). GRUB finds the image by a file
that only it has. https://www.gnu.org/software/xorriso/man_1_xorrisofs.html describes the options.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from obuild.bases.scratch import cpio, esp
from obuild.errors import ProcessError, UsageError
from obuild.host import process, units

#: The time of all that is in the image, in seconds since the epoch: 1980, before which FAT has no dates.
EPOCH = 315532800

#: The largest initial RAM disk: its archives have sizes of 32 bits.
MOST_MEMORY = 4 << 30

PAYLOAD = "payload.squashfs"

#: What makes an archive for the kernel of the payload, if GRUB loads one after the other. (GRUB could write these
#: itself, but its version 2.06 ends no name with a zero, and newer kernels refuse that.)
HEAD, TAIL = "head.cpio", "tail.cpio"

_MIB = 1 << 20
_BIOS = Path("/usr/lib/grub/i386-pc")

#: For each architecture, GRUB's format for UEFI, its folder's Debian package, and the consoles of the system.
_UEFI = {
    "x86_64": ("x86_64-efi", "grub-efi-amd64-bin", "console=ttyS0,115200n8 console=tty0"),
    "aarch64": ("arm64-efi", "grub-efi-arm64-bin", "console=ttyAMA0 console=tty0"),
}

_MODULES = ("iso9660", "part_gpt", "part_msdos", "search", "search_fs_file", "normal", "linux")
_MODULES_BIOS = ("biosdisk", "serial", "terminal", "test", "halt", "reboot", "vbe", "all_video")
_MODULES_UEFI = ("efi_gop", "fat", "terminal", "test", "halt", "reboot", "all_video")

PROGRAMS = ("xorriso", "mksquashfs", "grub-mkimage", *esp.PROGRAMS)


class Entry(NamedTuple):
    """A line of the boot menu: its text, words for the kernel, and whether the payload is loaded into memory."""

    text: str
    words: str
    in_memory: bool = False


class Medium(NamedTuple):
    """`id` is a name for the layer, which the medium's files are below; `folder` is where they are collected."""

    folder: Path
    id: str
    volume: str
    arch: str
    identity: UUID

    @property
    def live(self) -> Path:
        """The folder for the kernel, its initial RAM disk and the payload."""
        return self.folder / "live" / self.id


def check_host(arch: str) -> None:
    """UsageError if GRUB for `arch` is not installed here, or there is none."""
    if arch not in _UEFI:
        raise UsageError(f"an ISO can be made for {' and '.join(_UEFI)}, and the layer is for {arch}")
    for program in PROGRAMS:
        process.require(program)
    format, package, _ = _UEFI[arch]
    process.require_file(_BIOS.with_name(format) / "moddep.lst", package)
    if arch == "x86_64":
        process.require_file(_BIOS / "boot_hybrid.img", "grub-pc-bin")


def write(medium: Medium, entries: Sequence[Entry], out: Path) -> None:
    """Write the image of what is in the medium's folder. OSError or ProcessError if the disk is full."""
    grub = medium.folder / "boot" / "grub"
    grub.mkdir(parents=True)
    (grub / "grub.cfg").write_text(_menu(medium, entries))
    size = (medium.live / PAYLOAD).stat().st_size
    (medium.live / HEAD).write_bytes(cpio.head(PAYLOAD, cpio.FILE | 0o444, min(size, MOST_MEMORY - 1)))
    (medium.live / TAIL).write_bytes(cpio.TRAILER)
    early = out.with_name("early.cfg")
    early.write_text(f"search.file /live/{medium.id}/vmlinuz root\nset prefix=($root)/boot/grub\n")
    program, efi = out.with_name("grub.efi"), out.with_name("efi.img")
    _grub(_UEFI[medium.arch][0], early, program, (*_MODULES, *_MODULES_UEFI))
    room = -(-(program.stat().st_size + esp.TABLES) // _MIB) * _MIB
    with efi.open("wb") as file:
        file.truncate(room)
    esp.write(efi, start=0, arch=medium.arch, program=program, identity=medium.identity, epoch=EPOCH, size=room)
    bios: list[str | Path] = []
    if medium.arch == "x86_64":
        _grub("i386-pc-eltorito", early, grub / "eltorito.img", (*_MODULES, *_MODULES_BIOS))
        bios = [
            *("-b", "boot/grub/eltorito.img", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"),
            *("--grub2-boot-info", "--grub2-mbr", _BIOS / "boot_hybrid.img"),
            # Some BIOSes boot only disks with an active partition.
            *("--mbr-force-bootable", "-eltorito-alt-boot"),
        ]
    for path in (*medium.folder.rglob("*"), medium.folder):
        os.utime(path, (EPOCH, EPOCH))
    argv: list[str | Path] = [
        *("xorriso", "-as", "mkisofs", "-quiet", "-o", out),
        # Files of more than 4 GiB; names as they are, owned by root.
        *("-iso-level", "3", "-r", "-V", medium.volume),
        *("--modification-date=1980010100000000", "--gpt_disk_guid", str(medium.identity)),
        *bios,
        *("-append_partition", "2", "0xef", efi, "-appended_part_as_gpt"),
        *("-e", "--interval:appended_partition_2:all::", "-no-emul-boot"),
        *("-partition_offset", "16"),
        medium.folder,
    ]
    try:
        process.run(argv, env={"SOURCE_DATE_EPOCH": str(EPOCH), "TZ": "UTC", "LC_ALL": "C"})
    except ProcessError as error:
        if "exceeds free space" not in error.message:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    for path in (early, program, efi):
        path.unlink()


def check_memory(size: int) -> None:
    """UsageError if a payload of `size` bytes cannot be loaded into memory."""
    if size >= MOST_MEMORY:
        raise UsageError(
            f"the layer's kernel finds no CD and no USB stick, and {units.size(size)} are too much for memory",
            hint="install a kernel with more drivers, such as Debian's linux-image-amd64",
        )


def _grub(format: str, early: Path, out: Path, modules: Sequence[str]) -> None:
    folder = _BIOS.with_name(format.removesuffix("-eltorito"))
    argv: list[str | Path] = [
        *("grub-mkimage", f"--format={format}", f"--directory={folder}"),
        *(f"--config={early}", "--prefix=/boot/grub", f"--output={out}"),
    ]
    process.run([*argv, *modules])


def _menu(medium: Medium, entries: Sequence[Entry]) -> str:
    """GRUB's configuration: a menu on the screen and, if BIOS has started it, on the serial port."""
    live = f"/live/{medium.id}"
    lines = [f"set timeout={3 if len(entries) > 1 else 1}"]
    if medium.arch == "x86_64":
        lines += [
            'if [ "$grub_platform" = pc ]; then',
            "  if serial --unit=0 --speed=115200; then",
            "    terminal_input console serial",
            "    terminal_output console serial",
            "  fi",
            "fi",
        ]
    for entry in entries:
        payload = f" {live}/{HEAD} {live}/{PAYLOAD} {live}/{TAIL}" if entry.in_memory else ""
        words = " ".join(word for word in (_UEFI[medium.arch][2], entry.words) if word)
        lines += [
            f'menuentry "{entry.text}" {{',
            f"  linux {live}/vmlinuz {words}",
            f"  initrd {live}/initrd{payload}",
            "}",
        ]
    return "\n".join(lines) + "\n"
