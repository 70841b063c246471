"""Read ext2, ext3 and ext4: https://docs.kernel.org/filesystems/ext4/

Everything comes from a guest, so everything may be wrong: a damaged file system ends in an ObuildError.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from obuild.host.blocks import Blocks
from obuild.host.trees.damage import Unfinished, damaged, guarded, once, unreadable
from obuild.host.trees.ext import block_map, superblock, xattrs
from obuild.host.trees.in_place import InPlace, Place
from obuild.host.trees.nodes import Node, checked, decode, is_device, join

#: The features that change how files are read, and which this module does not know.
_UNKNOWN = {
    0x1: "compression",
    0x8: "journal_dev",
    0x10: "meta_bg",
    0x1000: "dirdata",
    0x8000: "inline_data",
    0x10000: "encrypt",
}
_KNOWN = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x20000

_ROOT = 2
_EXTENTS_FLAG = 0x80000

#: No attribute has a longer value.
_LONGEST = 1 << 20

#: Tables are read in pieces of this many bytes, of which some are kept.
_PIECE = 1 << 15

_guarded = guarded("e2fsck")


class Ext(InPlace):
    """The file system that begins at `start` on the disk. UsageError if it cannot be read as it is."""

    def __init__(self, blocks: Blocks, start: int) -> None:
        self.disk, self._start = blocks, start
        self._head = head = superblock.read(blocks, start)
        _check(head)
        self._table = (head.first + 1) * head.block
        self._piece = lru_cache(maxsize=256)(self._read_piece)

    def root(self) -> Node:
        """See `FileSystem.root`."""
        return self._node(_ROOT, "")

    @_guarded
    def children(self, folder: Node) -> list[Node]:
        """See `FileSystem.children`."""
        content = self.whole(folder)
        found = dict(sorted(self._names(folder, content)))
        return [self._node(inode, join(folder.path, decode(name))) for name, inode in found.items()]

    def _names(self, folder: Node, content: bytes) -> list[tuple[bytes, int]]:
        found, at = [], 0
        while at < len(content):
            inode, length, name_length = struct.unpack_from("<IHB", content, at)
            length = length if 8 <= length < 65532 else self._head.block
            name = content[at + 8 : at + 8 + name_length]
            if inode and name not in (b".", b".."):
                found.append((name, inode))
            at += length
        checked(folder, [name for name, _ in found])
        return found

    @_guarded
    def target(self, link: Node) -> str:
        """See `FileSystem.target`."""
        if link.size < 60 and not _flags(link) & _EXTENTS_FLAG:
            return decode(link.raw[40 : 40 + link.size])
        if link.size > self._head.block:
            raise damaged(f"the link /{link.path} is too long")
        return decode(b"".join(piece for _, piece in self.pieces(link)))

    @_guarded
    def xattrs(self, node: Node) -> dict[str, bytes]:
        """See `FileSystem.xattrs`."""
        found: dict[str, bytes] = {}
        if self._head.inode_size > 128:
            (extra,) = struct.unpack_from("<H", node.raw, 128)
            found |= xattrs.in_inode(node.raw[128 + extra :], self._value)
        low, high = struct.unpack_from("<I", node.raw, 104)[0], struct.unpack_from("<H", node.raw, 118)[0]
        if low or high:
            found |= xattrs.in_block(self._one_block((high << 32) | low), self._value)
        return dict(sorted(found.items()))

    def _value(self, inode: int) -> bytes:
        """The value of a large attribute, which has an inode of its own."""
        node = self._node(inode, "")
        if node.size > _LONGEST:
            raise ValueError("an attribute is too large")
        return b"".join(piece for _, piece in self.pieces(node))

    @_guarded
    def runs(self, file: Node) -> list[Place]:
        """See `InPlace.runs`."""
        kept, block = file.raw[40:100], self._head.block
        if _flags(file) & _EXTENTS_FLAG:
            found = block_map.extents(kept, once(self._one_block))
        else:
            found = block_map.pointers(kept, once(self._one_block), block)
        return [(logical * block, self._start + place * block, count * block) for logical, place, count in found]

    def _one_block(self, number: int) -> bytes:
        return self.disk.read(self._start + number * self._head.block, self._head.block)

    @_guarded
    def _node(self, inode: int, path: str) -> Node:
        raw = self._inode(inode)
        mode, uid, size, _, _, mtime = struct.unpack_from("<HHIIIi", raw)
        gid, links = struct.unpack_from("<HH", raw, 24)
        (size_high,) = struct.unpack_from("<I", raw, 108)
        uid_high, gid_high = struct.unpack_from("<HH", raw, 120)
        if len(raw) >= 140 and struct.unpack_from("<H", raw, 128)[0] >= 12:
            mtime += (struct.unpack_from("<I", raw, 136)[0] & 3) << 32
        device = (0, 0)
        if is_device(mode):
            device = _device(*struct.unpack_from("<II", raw, 40))
        if mode & 0xF000 in (0x8000, 0x4000):
            size |= size_high << 32
        owner = (uid_high << 16) | uid, (gid_high << 16) | gid
        return Node(self, path, inode, mode, *owner, size, mtime, links, device, raw)

    def _inode(self, inode: int) -> bytes:
        if not 0 < inode <= self._head.inodes:
            raise ValueError(f"there is no inode {inode}")
        group, index = divmod(inode - 1, self._head.inodes_per_group)
        descriptor = self._table_bytes(self._table + group * self._head.descriptor, self._head.descriptor)
        (table,) = struct.unpack_from("<I", descriptor, 8)
        if self._head.descriptor >= 64:
            table |= struct.unpack_from("<I", descriptor, 40)[0] << 32
        return self._table_bytes(table * self._head.block + index * self._head.inode_size, self._head.inode_size)

    def _table_bytes(self, offset: int, length: int) -> bytes:
        number, at = divmod(offset, _PIECE)
        data = self._piece(number)[at : at + length]
        return data if len(data) == length else data + self._table_bytes(offset + len(data), length - len(data))

    def _read_piece(self, number: int) -> bytes:
        place = self._start + number * _PIECE
        return self.disk.read(place, max(0, min(_PIECE, self.disk.size - place)) or 1)


def _check(head: superblock.Superblock) -> None:
    """UsageError if the file system has a feature that this module cannot read, or changes in its journal."""
    unknown = [name for bit, name in _UNKNOWN.items() if head.incompatible & bit]
    if not unknown and head.incompatible & ~_KNOWN:
        unknown = [f"{head.incompatible & ~_KNOWN:#x}"]
    if unknown:
        raise unreadable("ext4", ", ".join(unknown))
    if head.unfinished:
        raise Unfinished()


def _flags(node: Node) -> int:
    found: int = struct.unpack_from("<I", node.raw, 32)[0]
    return found


def _device(old: int, new: int) -> tuple[int, int]:
    """The major and minor number, which are kept in one of two ways."""
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00
