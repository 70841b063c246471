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

#: The part that the file system itself may need, in bytes.
TABLES = 4 << 20

#: The smallest FAT32, in bytes: it has at least 65,525 clusters of a sector.
_FAT32 = 64 << 20

LOADERS = {"x86_64": "BOOTX64.EFI", "aarch64": "BOOTAA64.EFI"}


def write(
    disk: Path, *, start: int, arch: str, program: Path, identity: UUID, epoch: int, size: int = SIZE
) -> None:
    """Make the file system at `start` on a raw disk, with `program` as what UEFI starts.

    One that is too small for FAT32 becomes FAT12 or FAT16. UsageError if the program does not fit.
    """
    if (length := program.stat().st_size) > size - TABLES:
        raise UsageError(f"the kernel image for UEFI takes {units.size(length)} of {units.size(size)}")
    image = f"{disk}@@{start}"
    serial = f"{identity.fields[0]:08x}"
    # All files get the image's date, in UTC.
    env = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC"}
    kind = ["-F"] if size >= _FAT32 else []
    process.run(["mformat", "-i", image, *kind, "-T", str(size // SECTOR), "-N", serial, "::"], env=env)
    process.run(["mmd", "-i", image, "::/EFI", "::/EFI/BOOT"], env=env)
    process.run(["mcopy", "-i", image, program, f"::/EFI/BOOT/{LOADERS[arch]}"], env=env)
