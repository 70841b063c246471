"""Read XFS: XFS Filesystem Structure, xfs_filesystem_structure.pdf of the kernel's documentation.

Everything comes from a guest, so everything may be wrong: a damaged file system ends in an ObuildError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache

from obuild.errors import UsageError
from obuild.host.blocks import Blocks
from obuild.host.trees.damage import Unfinished, guarded, once
from obuild.host.trees.in_place import InPlace, Place
from obuild.host.trees.nodes import Node, checked, decode, is_device, join
from obuild.host.trees.xfs import block_map, folders, log, superblock, xattrs
from obuild.host.trees.xfs.block_map import Fork

#: Flags of inodes: the data is on a device of its own; times have 64 bits; the counts of extents have 64 and 32.
_REALTIME, _LONG_TIMES, _MANY_EXTENTS = 0x1, 0x8, 0x10

#: The fields of an inode of version 3, and of those before.
_CORE_3, _CORE = 176, 100

#: Long times count nanoseconds from so many seconds before the epoch.
_FIRST_SECOND = 1 << 31

#: Before a part of the target of a symlink, with checksums.
_LINK = 56
_LONGEST_LINK = 1024

_guarded = guarded("xfs_repair")


class Xfs(InPlace):
    """The file system that begins at `start` on the disk. UsageError if it cannot be read as it is."""

    @_guarded
    def __init__(self, disk: Blocks, start: int) -> None:
        self.disk = disk
        self._head = superblock.read(disk, start)
        if not log.clean(disk, self._head):
            raise Unfinished()
        self._cluster = lru_cache(maxsize=256)(self._block)

    def root(self) -> Node:
        """See `FileSystem.root`."""
        return self._node(self._head.root, "")

    @_guarded
    def children(self, folder: Node) -> list[Node]:
        """See `FileSystem.children`."""
        listed = [(name, inode) for name, inode in self._names(folder) if name not in (b".", b"..")]
        checked(folder, [name for name, _ in listed])
        return [self._node(inode, join(folder.path, decode(name))) for name, inode in sorted(listed)]

    def _names(self, folder: Node) -> Iterator[tuple[bytes, int]]:
        fork, size, types = _data_fork(folder.raw), self._head.folder_block, self._head.types
        if fork.format == block_map.LOCAL:
            yield from folders.in_inode(fork.data, types=types)
            return
        # Its index lies far behind the end.
        content = self.whole(folder)
        for at in range(0, len(content), size):
            yield from folders.in_block(content[at : at + size], types=types)

    @_guarded
    def target(self, link: Node) -> str:
        """See `FileSystem.target`."""
        fork = _data_fork(link.raw)
        if link.size > _LONGEST_LINK:
            raise ValueError(f"the link /{link.path} is too long")
        if fork.format == block_map.LOCAL:
            return decode(fork.data[: link.size])
        header = _LINK if self._head.checksums else 0
        parts = (self.disk.read(place, length)[header:] for _, place, length in self.runs(link))
        return decode(b"".join(parts)[: link.size])

    @_guarded
    def xattrs(self, node: Node) -> dict[str, bytes]:
        """See `FileSystem.xattrs`."""
        fork = _attribute_fork(node.raw)
        if fork is None:
            return {}
        if fork.format == block_map.LOCAL:
            found = xattrs.in_inode(fork.data)
        else:
            runs = list(block_map.runs(fork, once(self._block)))
            found = xattrs.in_blocks(once(lambda number: self._of(runs, number))) if runs else {}
        return dict(sorted(found.items()))

    def _of(self, runs: list[block_map.Run], number: int) -> bytes:
        """A block of a fork."""
        for logical, first, count in runs:
            if logical <= number < logical + count:
                return self._block(first + number - logical)
        raise ValueError(f"a fork has no block {number}")

    @_guarded
    def runs(self, file: Node) -> list[Place]:
        """See `InPlace.runs`."""
        (flags,) = struct.unpack_from(">H", file.raw, 90)
        if flags & _REALTIME:
            raise UsageError(f"/{file.path} is on the realtime device of its file system, and that is not read")
        size, place = self._head.block, self._head.place
        found = block_map.runs(_data_fork(file.raw), once(self._block))
        return [(logical * size, place(first), count * size) for logical, first, count in found]

    def _block(self, number: int) -> bytes:
        return self.disk.read(self._head.place(number), self._head.block)

    @_guarded
    def _node(self, inode: int, path: str) -> Node:
        number, index = inode >> self._head.inode_bits, inode & (1 << self._head.inode_bits) - 1
        raw = self._cluster(number)[index * self._head.inode :][: self._head.inode]
        magic, mode, version, _, old_links = struct.unpack_from(">2sHBBH", raw)
        if magic != b"IN" or not mode:
            raise ValueError(f"/{path} has no inode")
        uid, gid, links = struct.unpack_from(">III", raw, 8)
        (size,) = struct.unpack_from(">Q", raw, 56)
        device = (0, 0)
        if is_device(mode):
            (number,) = struct.unpack_from(">I", _data_fork(raw).data)
            device = number >> 18, number & 0x3FFFF
        links = old_links if version == 1 else links
        return Node(self, path, inode, mode, uid, gid, size, _mtime(raw), links, device, raw)


def _mtime(inode: bytes) -> int:
    seconds, _ = struct.unpack_from(">iI", inode, 40)
    if _flags(inode) & _LONG_TIMES:
        return int(struct.unpack_from(">Q", inode, 40)[0]) // 10**9 - _FIRST_SECOND
    return int(seconds)


def _flags(inode: bytes) -> int:
    """The flags that inodes of version 3 have besides."""
    return int(struct.unpack_from(">Q", inode, 120)[0]) if inode[4] == 3 else 0


def _data_fork(inode: bytes) -> Fork:
    core = _CORE_3 if inode[4] == 3 else _CORE
    end = core + inode[82] * 8 if inode[82] else len(inode)
    place = (">Q", 24) if _flags(inode) & _MANY_EXTENTS else (">I", 76)
    return Fork(inode[5], struct.unpack_from(place[0], inode, place[1])[0], inode[core:end])


def _attribute_fork(inode: bytes) -> Fork | None:
    if not inode[82]:
        return None
    core = _CORE_3 if inode[4] == 3 else _CORE
    place = (">I", 76) if _flags(inode) & _MANY_EXTENTS else (">H", 80)
    return Fork(inode[83], struct.unpack_from(place[0], inode, place[1])[0], inode[core + inode[82] * 8 :])
