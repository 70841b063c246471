"""An EFI system partition with one program: FAT32, made by mtools without mounting anything.

UEFI starts \\EFI\\BOOT\\BOOTX64.EFI, or that of another architecture, of a disk that it has no boot entry for:
https://uefi.org/specs/UEFI/2.10/03_Boot_Manager.html#removable-media-boot-behavior
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from obuild.bases.scratch.root_partition import SECTOR
from obuild.errors import UsageError
from obuild.host import process, units

PROGRAMS = ("mformat", "mmd", "mcopy")

#: Room for a kernel and a large initial RAM disk, in bytes. Unused space takes none in an image file.
SIZE = 128 << 20

#: The part that FAT32 itself may need, in bytes.
_TABLES = 4 << 20

LOADERS = {"x86_64": "BOOTX64.EFI", "aarch64": "BOOTAA64.EFI"}


def write(disk: Path, *, start: int, arch: str, program: Path, identity: UUID, epoch: int) -> None:
    """Make the file system at `start` on a raw disk, with `program` as what UEFI starts.

    UsageError if it does not fit.
    """
    if (length := program.stat().st_size) > SIZE - _TABLES:
        raise UsageError(f"the kernel image for UEFI takes {units.size(length)} of {units.size(SIZE)}")
    image = f"{disk}@@{start}"
    serial = f"{identity.fields[0]:08x}"
    # All files get the image's date, in UTC.
    env = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC"}
    process.run(["mformat", "-i", image, "-F", "-T", str(SIZE // SECTOR), "-N", serial, "::"], env=env)
    process.run(["mmd", "-i", image, "::/EFI", "::/EFI/BOOT"], env=env)
    process.run(["mcopy", "-i", image, program, f"::/EFI/BOOT/{LOADERS[arch]}"], env=env)
