"""A digest of what a guest reads from a disk, the same for every format and program that packs the image."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import IO

from obuild.host import qemu_img, sparse
from obuild.host.qemu_img import Image
from obuild.host.regular import open_file

#: How much of a disk is looked at as one; what of it is not zero has to fit into a temporary file.
WINDOW = 4 << 30

_BLOCK = 64 << 10
_ZEROS = bytes(_BLOCK)


def digest(image: Image, scratch: Path | None) -> str:
    """sha256 of the disk's size and of each 64 KiB block that is not all zeros, preceded by its offset.

    So holes cost nothing, and blocks of zeros are holes. A qcow2 image is unpacked, one window at a
    time, into a nameless file in the folder `scratch`, by default where temporary files go.
    """
    hasher = hashlib.sha256(b"disk %d\n" % image.virtual_size)
    if image.format == "raw":
        with open_file(image.path, follow=True) as file:
            _add(hasher, file, 0)
        return hasher.hexdigest()
    for start in range(0, image.virtual_size, WINDOW):
        length = min(WINDOW, image.virtual_size - start)
        with tempfile.TemporaryFile(dir=scratch) as file:
            file.truncate(length)
            qemu_img.extract(image, file.fileno(), start, length)
            _add(hasher, file, start)
    return hasher.hexdigest()


def _add(hasher: hashlib._Hash, file: IO[bytes], start: int) -> None:
    """Add the blocks of a file that begins at `start` on the disk."""
    descriptor = file.fileno()
    for offset in sparse.blocks(descriptor, _BLOCK):
        block = os.pread(descriptor, _BLOCK, offset)
        if block != _ZEROS[: len(block)]:
            hasher.update((start + offset).to_bytes(8, "big"))
            hasher.update(block)
