"""Read btrfs: https://btrfs.readthedocs.io/en/latest/dev/On-disk-format.html

Everything comes from a guest, so everything may be wrong: a damaged file system ends in an ObuildError.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from functools import lru_cache

from obuild.errors import ObuildError
from obuild.host.trees.btrfs import compression
from obuild.host.trees.btrfs.volume import ROOT, Item, Key, Volume
from obuild.host.trees.damage import guarded
from obuild.host.trees.nodes import Node, checked, decode, is_device, join

#: Types of items.
_INODE, _XATTR, _NAME, _INDEXED_NAME, _EXTENT, _REFERENCE = 1, 24, 84, 96, 108, 156

#: The tree of files that others are below, the object that knows the default one, and the top folder of each.
_TOP, _DEFAULT, _FIRST_INODE = 5, 6, 256

#: Where the subvolume with the root is if it is not the default one: Ubuntu and openSUSE, Debian, Fedora.
_SUBVOLUMES = ("@", "@rootfs", "root")

#: How an extent is kept: in its item; or elsewhere, but not written yet.
_INLINE, _UNWRITTEN = 0, 2

_CHUNK = 1 << 20

_guarded = guarded("btrfs check")


class Btrfs:
    """The files on a volume."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.subvolume = lru_cache(maxsize=None)(self._subvolume)

    def _subvolume(self, id: int) -> Subvolume:
        return Subvolume(self, id, self.volume.tree(id))

    @_guarded
    def with_root(self) -> tuple[str, Subvolume]:
        """The subvolume with the root file system, and its path in the default one: "" if it is that.

        The default one if none looks like a root.
        """
        default = self.subvolume(self._default())
        folders = {node.path: node for node in default.children(default.root())}
        if "etc" not in folders:
            for node in filter(None, map(folders.get, _SUBVOLUMES)):
                inner = _top_of(node)
                if inner and any(below.path == "etc" for below in inner.children(inner.root())):
                    return node.path, inner
        return "", default

    def _default(self) -> int:
        for _, data in self.volume.items_of(self.volume.root, _DEFAULT, _NAME):
            for name, location, _ in _entries(data):
                if name == b"default":
                    return location[0]
        return _TOP

    @_guarded
    def chosen(self, option: str) -> Subvolume:
        """The subvolume that an option of mount(8) chooses, subvol=PATH or subvolid=ID.

        ObuildError if there is none.
        """
        key, _, value = option.partition("=")
        # Not our own sources: the same files may be in several folders of a tree then.
        again = Btrfs(self.volume)
        if key == "subvolid":
            return again.subvolume(int(value, 0) or _TOP)
        found = again.subvolume(_TOP).root()
        for part in filter(None, value.split("/")):
            folders = {node.name: node for node in found.source.children(found) if node.is_folder}
            if part not in folders:
                raise ObuildError(f"the btrfs file system has no subvolume {value}, which its fstab mounts")
            found = folders[part]._replace(path=part)
        inner = _top_of(found)
        if inner is None:
            raise ObuildError(
                f"{value} is a folder of the btrfs file system, not the subvolume that its fstab mounts"
            )
        return inner


class Subvolume:
    """One tree of files, whose top is at a logical address. Those inside belong to it, but are other sources."""

    def __init__(self, system: Btrfs, id: int, top: int) -> None:
        self._system, self._id, self._top = system, id, top
        self._volume = system.volume

    def root(self) -> Node:
        """See `FileSystem.root`."""
        return self._node(_FIRST_INODE, "")

    @_guarded
    def children(self, folder: Node) -> list[Node]:
        """See `FileSystem.children`."""
        if folder.inode < 0:
            return []
        found = []
        for _, data in self._items(folder.inode, _INDEXED_NAME):
            found += [(name, location) for name, location, _ in _entries(data)]
        checked(folder, [name for name, _ in found])
        return [self._child(folder, name, location) for name, location in sorted(found)]

    def _child(self, folder: Node, name: bytes, location: Key) -> Node:
        number, type, _ = location
        path = join(folder.path, decode(name))
        if type == _INODE:
            return self._node(number, path)
        if type != ROOT:
            raise ValueError(f"/{path} is nothing that is known")
        if not self._refers(number, folder.inode, name):
            # An empty folder, which has no inode.
            return Node(self, path, -number, stat.S_IFDIR | 0o755, 0, 0, 0, folder.mtime)
        return self._system.subvolume(number).root()._replace(path=path)

    def _refers(self, id: int, folder: int, name: bytes) -> bool:
        """Whether a subvolume is really there, and not in the one that this is a snapshot of."""
        key = (self._id, _REFERENCE, id)
        for _, data in self._volume.items(self._volume.root, key, key):
            inode, _, length = struct.unpack_from("<QQH", data)
            return bool(inode == folder and data[18 : 18 + length] == name)
        return False

    @_guarded
    def target(self, link: Node) -> str:
        """See `FileSystem.target`."""
        return decode(b"".join(piece for _, piece in self.pieces(link)))

    @_guarded
    def xattrs(self, node: Node) -> dict[str, bytes]:
        """See `FileSystem.xattrs`."""
        found = {}
        for _, data in self._items(node.inode, _XATTR):
            found.update({decode(name): value for name, _, value in _entries(data)})
        return dict(sorted(found.items()))

    def pieces(self, file: Node) -> Iterator[tuple[int, bytes]]:
        """See `FileSystem.pieces`."""
        for offset, length, data in self._extents(file):
            for done in range(0, length, _CHUNK):
                yield offset + done, self._read(data, done, min(_CHUNK, length - done))

    def extents(self, file: Node) -> Iterator[tuple[int, int]]:
        """See `FileSystem.extents`."""
        for offset, length, _ in self._extents(file):
            yield offset, length

    @_guarded
    def _extents(self, file: Node) -> list[tuple[int, int, bytes]]:
        """The written parts of a file, in order: offset, length, and the item."""
        found: list[tuple[int, int, bytes]] = []
        for (_, _, offset), data in self._items(file.inode, _EXTENT):
            if found and offset < sum(found[-1][:2]):
                raise ValueError(f"parts of /{file.path} overlap")
            if data[20] == _INLINE:
                (length,) = struct.unpack_from("<Q", data, 8)
            else:
                place, _, _, length = struct.unpack_from("<QQQQ", data, 21)
                if not place or data[20] == _UNWRITTEN:
                    continue
            length = min(length, file.size - offset)
            if length > 0:
                found.append((offset, length, data))
        return found

    @_guarded
    def _read(self, item: bytes, at: int, length: int) -> bytes:
        """A part of what an extent has, which begins at `at`."""
        (whole,) = struct.unpack_from("<Q", item, 8)
        how = item[16]
        if item[17] or item[18]:
            raise ValueError("a part of a file is encrypted")
        if item[20] == _INLINE:
            data = compression.unpacked(item[21:], how, whole, self._volume.sector) if how else item[21:]
            return data[at : at + length].ljust(length, b"\0")
        place, packed, skipped, _ = struct.unpack_from("<QQQQ", item, 21)
        if not how:
            return self._volume.read(place + skipped + at, length)
        if packed > compression.LONGEST:
            raise ValueError("a compressed part of a file is too long")
        data = compression.unpacked(self._volume.read(place, packed), how, whole, self._volume.sector)
        return data[skipped + at : skipped + at + length].ljust(length, b"\0")

    def _items(self, inode: int, type: int) -> Iterator[Item]:
        return self._volume.items_of(self._top, inode, type)

    @_guarded
    def _node(self, inode: int, path: str) -> Node:
        data = next((data for _, data in self._items(inode, _INODE)), b"")
        if not data:
            raise ValueError(f"/{path} has no inode")
        (size,) = struct.unpack_from("<Q", data, 16)
        links, uid, gid, mode = struct.unpack_from("<IIII", data, 40)
        (device,) = struct.unpack_from("<Q", data, 56)
        (mtime,) = struct.unpack_from("<q", data, 136)
        numbers = (device >> 20, device & 0xFFFFF) if is_device(mode) else (0, 0)
        return Node(self, path, inode, mode, uid, gid, size, mtime, links, numbers)


def _top_of(node: Node) -> Subvolume | None:
    """The subvolume whose top a node is."""
    return node.source if isinstance(node.source, Subvolume) and node.inode == _FIRST_INODE else None


def _entries(data: bytes) -> Iterator[tuple[bytes, Key, bytes]]:
    """What an item with names has: each name, the key of what it names, and the value if it is an attribute."""
    at = 0
    while at < len(data):
        location = struct.unpack_from("<QBQ", data, at)
        size, length = struct.unpack_from("<HH", data, at + 25)
        middle, end = at + 30 + length, at + 30 + length + size
        if end > len(data):
            raise ValueError("a name that is cut off")
        yield data[at + 30 : middle], location, data[middle:end]
        at = end
