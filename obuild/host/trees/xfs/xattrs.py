"""Extended attributes of XFS: XFS Filesystem Structure, Extended Attributes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from obuild.host.trees import acl
from obuild.host.trees.nodes import decode

#: The flags of an attribute: its value is beside its name, its namespaces, and that it is not whole.
_LOCAL, _TRUSTED, _SECURE, _PARENT, _INCOMPLETE = 0x1, 0x2, 0x4, 0x8, 0x80

#: Access control lists are kept under these names.
_ACLS = {
    b"SGI_ACL_FILE": "system.posix_acl_access",
    b"SGI_ACL_DEFAULT": "system.posix_acl_default",
}

#: The headers of blocks without and with checksums: leaves and nodes.
_LEAVES = {0xFBEE: 32, 0x3BEE: 80}
_NODES = {0xFEBE: 16, 0x3EBE: 64}

#: Before a part of a value that has blocks of its own, with checksums.
_REMOTE = 56
_REMOTE_MAGIC = b"XARM"

_LONGEST = 1 << 16
_DEEPEST = 5

#: Reads a block of the fork, each once.
Read = Callable[[int], bytes]

Entry = tuple[int, bytes, bytes]


def in_inode(data: bytes) -> dict[str, bytes]:
    """The attributes that are in the inode itself."""
    return _named(_short(data))


def in_blocks(read: Read) -> dict[str, bytes]:
    """The attributes that have blocks of their own."""
    return _named(_tree(read, 0, _DEEPEST))


def _named(entries: Iterator[Entry]) -> dict[str, bytes]:
    found = {}
    for flags, name, value in entries:
        if flags & (_PARENT | _INCOMPLETE):
            continue
        if flags & _TRUSTED and name in _ACLS:
            found[_ACLS[name]] = _acl(value)
            continue
        space = "trusted" if flags & _TRUSTED else "security" if flags & _SECURE else "user"
        found[f"{space}.{decode(name)}"] = value
    return found


def _short(data: bytes) -> Iterator[Entry]:
    at = 4
    for _ in range(data[2]):
        name, value, flags = data[at : at + 3]
        middle, end = at + 3 + name, at + 3 + name + value
        if end > len(data):
            raise ValueError("an attribute that is cut off")
        yield flags, data[at + 3 : middle], data[middle:end]
        at = end


def _tree(read: Read, number: int, depth: int) -> Iterator[Entry]:
    block = read(number)
    (magic,) = struct.unpack_from(">H", block, 8)
    if magic in _LEAVES:
        yield from _leaf(block, read, _LEAVES[magic])
        return
    if magic not in _NODES or not depth:
        raise ValueError("a wrong block of attributes")
    header = _NODES[magic]
    (count,) = struct.unpack_from(">H", block, 56 if header == 64 else 12)
    below = [struct.unpack_from(">II", block, header + index * 8)[1] for index in range(count)]
    for each in below:
        yield from _tree(read, each, depth - 1)


def _leaf(block: bytes, read: Read, header: int) -> Iterator[Entry]:
    (count,) = struct.unpack_from(">H", block, 56 if header == 80 else 12)
    for index in range(count):
        _, at, flags = struct.unpack_from(">IHB", block, header + index * 8)
        if flags & _LOCAL:
            size, length = struct.unpack_from(">HB", block, at)
            name, value = block[at + 3 : at + 3 + length], block[at + 3 + length : at + 3 + length + size]
        else:
            first, size, length = struct.unpack_from(">IIB", block, at)
            name = block[at + 9 : at + 9 + length]
            # The first block of a value that is still being written is 0.
            value = b"" if flags & _INCOMPLETE else _remote(read, first, size, checksums=header == 80)
        if len(name) != length or (len(value) != size and not flags & _INCOMPLETE):
            raise ValueError("an attribute that is cut off")
        yield flags, name, value


def _remote(read: Read, number: int, size: int, *, checksums: bool) -> bytes:
    if size > _LONGEST:
        raise ValueError("an attribute is too large")
    found = b""
    while len(found) < size:
        block = read(number)
        if checksums and block[:4] != _REMOTE_MAGIC:
            raise ValueError("a wrong value of an attribute")
        found += block[_REMOTE:] if checksums else block
        number += 1
    return found[:size]


def _acl(kept: bytes) -> bytes:
    """An access control list as getxattr(2) returns it."""
    (count,) = struct.unpack_from(">I", kept)
    entries = (struct.unpack_from(">IIH", kept, 4 + 12 * index) for index in range(count))
    return acl.packed((tag, allowed, id) for tag, id, allowed in entries)
