"""Extended attributes as ext2, ext3 and ext4 keep them: https://docs.kernel.org/filesystems/ext4/attributes.html"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from obuild.host.trees import acl
from obuild.host.trees.nodes import decode

_MAGIC = 0xEA020000

#: The header of a block of attributes, and an entry without its name.
_HEADER, _ENTRY = 32, 16

_PREFIXES = {
    1: "user.",
    2: "system.posix_acl_access",
    3: "system.posix_acl_default",
    4: "trusted.",
    6: "security.",
    8: "system.richacl",
}

_ACLS = (2, 3)

#: The content of an inode, for a value that has one.
Content = Callable[[int], bytes]


def in_inode(data: bytes, content: Content) -> dict[str, bytes]:
    """The attributes in an inode; `data` is what follows its fields."""
    if len(data) < 4 or struct.unpack_from("<I", data)[0] != _MAGIC:
        return {}
    return dict(_entries(data[4:], 0, content))


def in_block(data: bytes, content: Content) -> dict[str, bytes]:
    """The attributes in a block of their own. ValueError if it has none."""
    if struct.unpack_from("<I", data)[0] != _MAGIC:
        raise ValueError("a wrong block of attributes")
    return dict(_entries(data, _HEADER, content))


def _entries(data: bytes, at: int, content: Content) -> Iterator[tuple[str, bytes]]:
    """Entries from `at` on; values are counted from the beginning of `data`."""
    while at + 4 <= len(data) and data[at : at + 4] != bytes(4):
        length, prefix, offset, inode, size = struct.unpack_from("<BBHII", data, at)
        name = data[at + _ENTRY : at + _ENTRY + length]
        value = content(inode) if inode else data[offset : offset + size]
        if len(value) != size:
            raise ValueError("an attribute that is cut off")
        if prefix in _PREFIXES:
            yield _PREFIXES[prefix] + decode(name), _acl(value) if prefix in _ACLS else value
        at += -(-(_ENTRY + length) // 4) * 4


def _acl(kept: bytes) -> bytes:
    """An access control list as getxattr(2) returns it."""
    return acl.packed(_acl_entries(kept))


def _acl_entries(kept: bytes) -> Iterator[tuple[int, int, int]]:
    """Entries have an id only if they name somebody."""
    at = 4
    while at < len(kept):
        tag, allowed = struct.unpack_from("<HH", kept, at)
        named = tag in acl.NAMED
        yield tag, allowed, struct.unpack_from("<I", kept, at + 4)[0] if named else 0
        at += 8 if named else 4
