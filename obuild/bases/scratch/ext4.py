"""The root file system of an image made from packages: ext4, the same bytes for the same files.

mke2fs copies a folder into its place on a raw disk. What it takes from the clock or from the folder's own inodes
is set afterwards with debugfs, which needs no mount: https://man7.org/linux/man-pages/man8/debugfs.8.html
"""

from __future__ import annotations

import re
from pathlib import Path
from uuid import UUID

from obuild.bases import key_slot
from obuild.errors import ObuildError
from obuild.host import process
from obuild.host.blocks import raw_file
from obuild.host.qemu_img import KEY_BLOCK
from obuild.host.trees.ext.files import Ext
from obuild.host.trees.nodes import Tree

#: The features for every mke2fs: all are known to GRUB 2.06, older kernels and older versions of e2fsck.
CONFIG = """\
[defaults]
	base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
	blocksize = 4096
	inode_size = 256
	inode_ratio = 16384
[fs_types]
	ext4 = {
		features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
	}
"""

PROGRAMS = ("mke2fs", "dumpe2fs", "debugfs")

#: The times of each inode. mke2fs takes the first three from the host's clock.
_TIMES = ("atime", "ctime", "crtime", "atime_extra", "ctime_extra", "crtime_extra", "mtime_extra")


def mke2fs_argv(work: Path, identity: UUID, *, start: int, size: int) -> list[str | Path]:
    """The command that copies work/bare into a file system of `size` bytes at `start` on work/disk.raw."""
    extended = (
        f"offset={start}",
        # Initialize now, where it costs nothing: otherwise the guest's kernel does it, again in every layer.
        "lazy_itable_init=0,lazy_journal_init=0",
        f"hash_seed={identity}",
    )
    return [
        *("env", f"MKE2FS_CONFIG={work}/mke2fs.conf", "mke2fs", "-q", "-F"),
        *("-t", "ext4"),
        *("-L", "root"),
        *("-U", str(identity)),
        *("-m", "1"),
        *("-E", ",".join(extended)),
        *("-d", work / "bare"),
        work / "disk.raw",
        f"{size // 1024}k",
    ]


def set_times(disk: Path, *, start: int, epoch: int) -> None:
    """Have every inode in use say that it was made, read and changed at `epoch`; mtimes keep their seconds."""
    commands = [
        f"set_inode_field <{inode}> {field} {0 if field.endswith('extra') else f'@{epoch}'}\n"
        for inode in _inodes(disk, start)
        for field in _TIMES
    ]
    # debugfs writes the current time into the superblock.
    fields = ("mtime", "wtime", "lastcheck", "mkfs_time")
    commands += [f"set_super_value {field} @{epoch}\n" for field in fields]
    process.run(
        ["debugfs", "-w", "-f", "-", f"{disk}?offset={start}"],
        input="".join(commands).encode(),
        env={"E2FSPROGS_FAKE_TIME": str(epoch)},
    )


def key_block(disk: Path, path: str, *, start: int) -> int:
    """The offset on the disk of the one block that a file of 4096 bytes has. ObuildError if it has not one."""
    with raw_file(disk) as blocks:
        found = key_slot.place(Tree({"": Ext(blocks, start)}), path)
    if found is None:
        raise ObuildError(f"{path} in the new image is not one block of {KEY_BLOCK} bytes")
    return found


def _inodes(disk: Path, start: int) -> list[int]:
    """The inodes that are in use, from the lists of those that are free."""
    # In the folder of the disk: after a question mark in a path, e2fsprogs reads options.
    argv = ["dumpe2fs", f"{disk.name}?offset={start}"]
    told = process.run(argv, env={"LC_ALL": "C"}, cwd=disk.parent).decode(errors="replace")
    total = re.search(r"^Inode count:\s+([0-9]+)$", told, re.MULTILINE)
    if total is None:
        raise ObuildError("dumpe2fs does not say how many inodes the new file system has")
    unused: set[int] = set()
    for runs in re.findall(r"^  Free inodes: (.*)$", told, re.MULTILINE):
        for first, last in re.findall(r"([0-9]+)(?:-([0-9]+))?", runs):
            unused.update(range(int(first), int(last or first) + 1))
    return [inode for inode in range(1, int(total[1]) + 1) if inode not in unused]
