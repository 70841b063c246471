"""The device of a btrfs, and the trees of items on it: https://btrfs.readthedocs.io/en/latest/dev/On-disk-format.html

Everything but the superblock has logical addresses; chunks say where these are on the device.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from obuild.errors import UsageError
from obuild.host.blocks import Blocks
from obuild.host.trees.damage import Unfinished, damaged, guarded, once, unreadable

#: Where the superblock is; more copies are at 64 MiB and 256 GiB.
_SUPERBLOCK = 64 << 10
COPIES = (_SUPERBLOCK, 64 << 20, 256 << 30)
SUPERBLOCK_SIZE = 4096

#: Features that are known, or do not change how files are read: mixed references, the default subvolume, mixed
#: groups, two compressions, large nodes, long references, RAID, short extents of metadata, no holes, a UUID of its
#: own for metadata, three and four copies, simple quotas.
_KNOWN = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800 | 0x10000
_NAMES = {0x1000: "zoned", 0x2000: "extent-tree-v2", 0x4000: "raid-stripe-tree"}

#: Before the items of a leaf, and the pointers of a node; and how long each is.
_HEADER, _ITEM, _POINTER = 101, 25, 33

_DEEPEST = 7

_CHUNK_TREE, _CHUNK_ITEM = 256, 228

#: The type of the item that says where a tree is.
ROOT = 132

#: The highest value of a key's offset.
LAST = (1 << 64) - 1

#: An object, the type of the item, and an offset, whose meaning the type decides.
Key = tuple[int, int, int]
Item = tuple[Key, bytes]

#: Reads a node by its logical address.
Read = Callable[[int], bytes]


class Chunk(NamedTuple):
    """A range of logical addresses, and where it is on the device: more than once if it has copies."""

    logical: int
    length: int
    places: tuple[int, ...]


class Volume:
    """The btrfs that begins at `start` on the disk. UsageError if it cannot be read as it is.

    `size` and `used` are in bytes; the second counts what has two copies once.
    """

    @guarded("btrfs check")
    def __init__(self, disk: Blocks, start: int) -> None:
        self.disk, self.start = disk, start
        head = disk.read(start + _SUPERBLOCK, SUPERBLOCK_SIZE)
        self.root, chunk_root, log_root = struct.unpack_from("<QQQ", head, 80)
        self.size, self.used, _, devices = struct.unpack_from("<QQQQ", head, 112)
        self.sector, self.node_size = struct.unpack_from("<II", head, 144)
        (system,) = struct.unpack_from("<I", head, 160)
        (features,) = struct.unpack_from("<Q", head, 188)
        if self.sector not in (4096, 8192, 16384, 32768, 65536) or not self.sector <= self.node_size <= 65536:
            raise damaged("its superblock has wrong sizes", "btrfs check")
        _check(features, devices)
        if log_root:
            raise Unfinished()
        self.node = lru_cache(maxsize=1024)(self._node)
        # The superblock has the chunks with the tree of all chunks.
        self.chunks = sorted(_system_chunks(head[811 : 811 + min(system, 2048)]))
        every = self.items_of(chunk_root, _CHUNK_TREE, _CHUNK_ITEM)
        self.chunks = sorted(_chunk(key[2], data) for key, data in every)

    def items(self, root: int, first: Key, last: Key) -> Iterator[Item]:
        """The items of a tree from one key up to another, in order. `root` is the logical address of its top."""
        return self._below(once(self.node), root, first, last, None)

    def items_of(self, root: int, object: int, type: int) -> Iterator[Item]:
        """The items of one type that an object has in a tree, as `items`."""
        return self.items(root, (object, type, 0), (object, type, LAST))

    def tree(self, id: int) -> int:
        """The logical address of the top of a tree. ValueError if there is none."""
        for _, data in self.items_of(self.root, id, ROOT):
            return int(struct.unpack_from("<Q", data, 176)[0])
        raise ValueError(f"there is no tree {id}")

    def _below(self, read: Read, logical: int, first: Key, last: Key, level: int | None) -> Iterator[Item]:
        node = read(logical)
        count, found = struct.unpack_from("<IB", node, 96)
        step = _POINTER if found else _ITEM
        if level not in (None, found) or found > _DEEPEST or _HEADER + count * step > len(node):
            raise ValueError("a wrong node of a tree")

        def key(index: int) -> Key:
            return struct.unpack_from("<QBQ", node, _HEADER + index * step)

        if not found:
            for index in range(bisect.bisect_left(range(count), first, key=key), count):
                if key(index) > last:
                    return
                at, size = struct.unpack_from("<II", node, _HEADER + index * step + 17)
                data = node[_HEADER + at : _HEADER + at + size]
                if len(data) != size:
                    raise ValueError("an item that is cut off")
                yield key(index), data
            return
        for index in range(max(0, bisect.bisect_right(range(count), first, key=key) - 1), count):
            if key(index) > last:
                return
            (below,) = struct.unpack_from("<Q", node, _HEADER + index * step + 17)
            yield from self._below(read, below, first, last, found - 1)

    def _node(self, logical: int) -> bytes:
        node = self.read(logical, self.node_size)
        if struct.unpack_from("<Q", node, 48) != (logical,):
            raise ValueError("a wrong node of a tree")
        return node

    def read(self, logical: int, length: int) -> bytes:
        """What is at a logical address. ValueError if no chunk has it."""
        return self.disk.read(self.place(logical, length), length)

    def place(self, logical: int, length: int) -> int:
        """Where on the disk that is."""
        chunk = self.chunk(logical, length)
        return self.start + chunk.places[0] + logical - chunk.logical

    def chunk(self, logical: int, length: int) -> Chunk:
        """The chunk with that. ValueError if none has all of it."""
        index = bisect.bisect_right(self.chunks, logical, key=lambda chunk: chunk.logical) - 1
        if index >= 0:
            chunk = self.chunks[index]
            if logical + length <= chunk.logical + chunk.length:
                return chunk
        raise ValueError(f"no chunk has the address {logical}")


def _check(features: int, devices: int) -> None:
    if unknown := features & ~_KNOWN:
        name = next((name for bit, name in _NAMES.items() if bit & unknown), f"{unknown:#x}")
        raise unreadable("btrfs", name)
    if devices != 1:
        raise UsageError(f"the btrfs file system has {devices} devices, and obuild reads only those with one")


def _system_chunks(array: bytes) -> Iterator[Chunk]:
    at = 0
    while at < len(array):
        _, _, logical = struct.unpack_from("<QBQ", array, at)
        chunk = _chunk(logical, array[at + 17 :])
        yield chunk
        at += 17 + 48 + 32 * len(chunk.places)


def _chunk(logical: int, data: bytes) -> Chunk:
    (length,) = struct.unpack_from("<Q", data)
    (stripes,) = struct.unpack_from("<H", data, 44)
    if not stripes:
        raise ValueError("a wrong chunk")
    places = (struct.unpack_from("<Q", data, 56 + 32 * stripe)[0] for stripe in range(stripes))
    return Chunk(logical, length, tuple(places))
