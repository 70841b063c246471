"""A monolithic sparse VMDK, as VMware's desktop programs keep a disk in one file: by qemu-img, with a fixed id.

VMware, "Virtual Disk Format 5.0", 2011.
"""

from __future__ import annotations

import re
from pathlib import Path

from obuild.errors import ObuildError, UsageError
from obuild.exports.disk import Disk
from obuild.exports.formats import vmdk
from obuild.guests.profile import Card
from obuild.host import qemu_img, units

#: The largest disk in one file, in bytes: places in it are 32-bit numbers of sectors.
LARGEST = 2 << 40

#: Where the descriptor is, in bytes, and its line with the content id: at random, up to eight digits.
_DESCRIPTOR, _LENGTH = 512, 20 * 512
_CID = re.compile(rb"(?<=\nCID=)[0-9a-f]+(?=\n)")


def check(size: int, card: Card) -> None:
    """UsageError if a disk is too large for the format."""
    if size > LARGEST - (1 << 30):  # its tables take room, too
        raise UsageError(
            f"a sparse VMDK holds less than {units.size(LARGEST)}, and the disk has {units.size(size)}",
            hint="--type vmdk is compressed and holds more",
        )


def write(disk: Disk, out: Path) -> None:
    """See `Format.write`. The file's name is in its descriptor."""
    options = "subformat=monolithicSparse,adapter_type=lsilogic,hwversion=13"
    qemu_img.convert_raw(disk.path, out, "vmdk", options, progress=disk.reading())
    with out.open("r+b") as file:
        file.seek(_DESCRIPTOR)
        text, count = _CID.subn(vmdk.content_id(disk).encode(), file.read(_LENGTH).rstrip(b"\0"))
        if count != 1:
            raise ObuildError("qemu-img has made a VMDK without a content id")
        file.seek(_DESCRIPTOR)
        file.write(text.ljust(_LENGTH, b"\0"))
