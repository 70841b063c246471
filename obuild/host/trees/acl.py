"""Access control lists as getxattr(2) returns them: linux/posix_acl_xattr.h."""

from __future__ import annotations

import struct
from collections.abc import Iterable

#: The tags of entries that name a user or a group.
NAMED = (2, 8)

_VERSION = 2
_NOBODY = 0xFFFFFFFF


def packed(entries: Iterable[tuple[int, int, int]]) -> bytes:
    """The list for entries of a tag, what is allowed, and an id, which counts if the tag is in `NAMED`."""
    return struct.pack("<I", _VERSION) + b"".join(
        struct.pack("<HHI", tag, allowed, id if tag in NAMED else _NOBODY) for tag, allowed, id in entries
    )
