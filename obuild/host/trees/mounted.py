"""File systems that only Linux itself can read here: mounted read-only, which needs root."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obuild.errors import ObuildError, ProcessError, UsageError
from obuild.host import process
from obuild.host.blocks import Blocks
from obuild.host.partitions import MOUNT_OPTIONS, Partition
from obuild.host.trees.folder import Folder

#: Where the subvolume with the root is if it is not the default one: Ubuntu, Debian, Fedora.
_SUBVOLUMES = ("", "@", "@rootfs", "root")


class NeedsFile(UsageError):
    """The file system can be read, but only from a raw disk in a file."""


@contextmanager
def mounted(disk: Blocks, part: Partition, kind: str) -> Iterator[Folder]:
    """The file system of a partition. UsageError without root, or if the disk is not a raw file."""
    if os.geteuid() != 0:
        raise UsageError(f"{part.called} has the file system {kind}, which only root can read", hint="use sudo")
    if disk.path is None:
        raise NeedsFile(f"{part.called} has the file system {kind}, which can only be read from a raw disk")
    with tempfile.TemporaryDirectory(prefix="obuild-mount-") as top:
        place = ("loop", f"offset={part.start}", f"sizelimit={part.size}")
        options = ",".join(("ro", *MOUNT_OPTIONS[kind], *place))
        try:
            process.run(["mount", "-t", kind, "-o", options, disk.path, top])
        except ProcessError as error:
            raise ObuildError(f"{part.called} cannot be mounted: {error.message}") from error
        try:
            held = os.open(top, os.O_PATH | os.O_DIRECTORY)
        finally:
            # From here on, only the open folder keeps it: after a kill -9, nothing stays mounted.
            process.run(["umount", "--lazy", top])
    try:
        top_again = Path(f"/proc/self/fd/{held}")
        yield Folder(top_again / root_in(top_again))
    finally:
        os.close(held)


def root_in(top: Path) -> str:
    """The folder with the root in a mounted file system: "" unless it is a subvolume."""
    return next((name for name in _SUBVOLUMES if (top / name / "etc").is_dir()), "")
