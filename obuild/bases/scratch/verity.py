"""Write a dm-verity hash tree. Its root hash covers every byte of the data.

The format is that of `veritysetup format`, version 1, with its superblock:
https://gitlab.com/cryptsetup/cryptsetup/-/wikis/DMVerity
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

BLOCK = 4096

_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")

#: How many blocks to read at once.
_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Tree:
    """A superblock and hashes as they are on the disk; `blocks` is the length of the data in blocks."""

    root_hash: str
    salt: str
    blocks: int
    data: bytes


def tree(path: Path, *, identity: UUID, salt: bytes) -> Tree:
    """Return the hash tree of a file of whole blocks, more than one."""
    level, blocks = bytearray(), 0
    with path.open("rb") as file:
        while chunk := file.read(BLOCK * _CHUNK):
            level += _hashes(chunk, salt)
            blocks += len(chunk) // BLOCK
    levels = [_padded(level)]
    while len(levels[-1]) > BLOCK:
        levels.append(_padded(_hashes(levels[-1], salt)))
    root_hash = hashlib.sha256(salt + levels[-1]).hexdigest()
    head = _SUPERBLOCK.pack(
        *(b"verity", 1, 1, identity.bytes, b"sha256"),
        *(BLOCK, BLOCK, blocks, len(salt), salt),
    )
    return Tree(root_hash, salt.hex(), blocks, _padded(head) + b"".join(reversed(levels)))


def _hashes(data: bytes | bytearray, salt: bytes) -> bytes:
    salted = hashlib.sha256(salt)
    out = []
    for start in range(0, len(data), BLOCK):
        one = salted.copy()
        one.update(data[start : start + BLOCK])
        out.append(one.digest())
    return b"".join(out)


def _padded(data: bytes | bytearray) -> bytes:
    return bytes(data) + bytes(-len(data) % BLOCK)
