"""Change the size of a file system in a file of its own: ext by its tools, xfs and btrfs by mounting it."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from obuild.errors import ObuildError, ProcessError, UsageError
from obuild.host import process
from obuild.host.partitions import MOUNT_OPTIONS

#: The programs for ext.
PROGRAMS = ("e2fsck", "resize2fs")

#: Where the superblock of an ext file system has the size of its blocks, and the time of its last change.
_BLOCK_AT, _WTIME_AT = 1024 + 24, 1024 + 48

#: For each kind that Linux itself has to grow: the command, which gets the folder where it is mounted.
_GROWN = {"xfs": ("xfs_growfs",), "btrfs": ("btrfs", "filesystem", "resize", "max")}

#: Nobody else sees this mount, and it ends with the shell, whatever happens.
_MOUNTED = 'mount -t "$1" -o "$2" "$3" "$4" && folder=$4 && shift 4 && "$@" "$folder"'

KINDS = ("ext", *_GROWN)


class FileSystem(Protocol):
    """A file system in the file `path`."""

    path: Path

    def check(self) -> None:
        """Repair what can be repaired safely. ProcessError if there is more."""
        ...

    def least(self) -> int:
        """The size in bytes to which it can shrink. UsageError if it cannot."""
        ...

    def resize(self, size: int) -> None:
        """Give it `size` bytes, in whole KiB."""
        ...


def see(kind: str, called: str) -> None:
    """UsageError, which names the partition, if a file system of this kind cannot be resized here."""
    if kind not in KINDS:
        message = f"{called} holds {kind or 'nothing that is known'}, and only {', '.join(KINDS)} can be resized"
        raise UsageError(message, hint="resize it with its own tools where the image runs")
    if kind in _GROWN:
        if os.geteuid() != 0:
            raise UsageError(f"{called} holds {kind}, which only root can resize", hint="use sudo")
        process.require(_GROWN[kind][0])


def opened(kind: str, path: Path) -> FileSystem:
    """The file system in a file."""
    return _Ext(path) if kind == "ext" else _Mounted(path, kind)


class _Ext:
    """The tools take no time from the clock, but that of its last change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        time = str(_number(path, _WTIME_AT))
        self._env = {"E2FSPROGS_FAKE_TIME": time, "E2FSCK_TIME": time, "LC_ALL": "C"}

    def check(self) -> None:
        process.run(["e2fsck", "-f", "-p", self.path], env=self._env, ok=(0, 1))  # 1: it has repaired something

    def least(self) -> int:
        told = process.run(["resize2fs", "-P", self.path], env=self._env).decode(errors="replace")
        found = re.search(r"minimum size of the filesystem: ([0-9]+)", told)
        if found is None:
            raise ObuildError("resize2fs does not say how small the file system can be")
        return int(found[1]) * (1024 << _number(self.path, _BLOCK_AT))

    def resize(self, size: int) -> None:
        if size > self.path.stat().st_size:
            os.truncate(self.path, size)  # resize2fs would say that the disk is too small if it is full
        # The tables of new inodes stay holes: the guest's kernel clears them, as in a new file system.
        lazy = {"RESIZE2FS_FORCE_LAZY_ITABLE_INIT": "1"}
        process.run(["resize2fs", self.path, f"{size >> 10}K"], env=self._env | lazy)


@dataclass
class _Mounted:
    """One that Linux has to mount. Its journal is replayed then, so there is nothing to check before."""

    path: Path
    kind: str

    def check(self) -> None:
        pass

    def least(self) -> int:
        raise UsageError(f"the file system is {self.kind}, and only ext can be made smaller")

    def resize(self, size: int) -> None:
        os.truncate(self.path, size)
        options = ",".join(("loop", "nosuid", "nodev", "noexec", "noatime", *MOUNT_OPTIONS[self.kind]))
        with tempfile.TemporaryDirectory(prefix="obuild-mount-") as folder:
            shell = ("unshare", "--mount", "--propagation=private", "sh", "-c", _MOUNTED, "sh")
            try:
                process.run([*shell, self.kind, options, self.path, folder, *_GROWN[self.kind]])
            except ProcessError as error:
                raise ObuildError(f"the {self.kind} file system cannot be resized: {error.message}") from error


def _number(path: Path, at: int) -> int:
    with path.open("rb") as file:
        return int.from_bytes(os.pread(file.fileno(), 4, at), "little")
