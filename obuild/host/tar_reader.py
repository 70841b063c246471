"""Read tar archives from an untrusted source, without extracting anything.

tarfile guesses where an archive is odd, and an archive can make it loop, recurse, or fill memory. Here each header
is either understood or an error, and what is kept of it is bounded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

BLOCK = 512

#: The largest size of a long name, or of one member's pax records, in bytes.
LONGEST = 1 << 20

#: The largest number of a sparse file's pieces. GNU tar lists them in the archive, 21 to a block.
MOST_EXTENTS = 1 << 20

_ZEROS = bytes(BLOCK)
_GNU = b"ustar  \0"
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_RECORD = re.compile(rb"([1-9][0-9]{0,7}) ")
_DIGITS = re.compile(rb"[0-9]{1,19}")

FILE, LINK, SYMLINK, FOLDER, SPARSE = "0", "1", "2", "5", "S"
#: Not a type flag: a file that is sparse according to its pax records, in a format that is not read here.
OLD_SPARSE = "old sparse"


class Damaged(Exception):
    """Not a tar archive, or not one that is accepted: why, and `at` which byte it goes wrong."""

    def __init__(self, why: str, at: int) -> None:
        super().__init__(f"{why} at byte {at}")
        self.at = at


@dataclass(frozen=True, slots=True)
class Member:
    """One member. `kind` is its type flag, `size` the length of its file in bytes.

    `extents` are the pieces of that file that the archive holds, as (offset in the file, length), in order. They
    lie one after the other from byte `start` of the archive on. Between them, the file has zeros.
    """

    kind: str
    path: str
    link: str
    mode: int
    uid: int
    gid: int
    size: int
    start: int
    extents: tuple[tuple[int, int], ...]


def members(file: BinaryIO, *, strict: bool) -> Iterator[Member]:
    """The members of an archive, which must be complete and not compressed. Damaged if it is not.

    `strict` accepts only what `tar --format=gnu` writes, so that no two programs can read it differently: the
    caller knows what GNU tar will make of the archive. Otherwise ustar and pax are accepted, too. Of the pax
    records, those about names, sizes and owners count, and those of sparse files as bsdtar and GNU tar write them
    by default (GNU.sparse, version 1.0). A sparse file in an older format has the kind OLD_SPARSE, and its extents
    as stored.
    """
    return _Reader(file, strict).members()


class _Reader:
    def __init__(self, file: BinaryIO, strict: bool) -> None:
        self.file = file
        self.strict = strict
        self.length = file.seek(0, os.SEEK_END)
        self.header = 0  # where the current header begins; the first, if a member has several
        self.at = 0
        self.said: dict[bytes, bytes] = {}  # what headers before a member say about it, by their names in pax

    def members(self) -> Iterator[Member]:
        while (block := self.read(BLOCK)) != _ZEROS:
            kind = self.checked(block)
            size = self.number(block[124:136])
            if kind in "LK":
                self.long_name(b"path" if kind == "L" else b"linkpath", size)
            elif kind in "xXg" and not self.strict:
                self.records(size, everywhere=kind == "g")
            else:
                yield self.member(kind, block, size)
                self.said = {}
                self.header = self.at
        if self.said or (self.strict and self.read(BLOCK) != _ZEROS):
            self.fail("it ends too early")

    def fail(self, why: str) -> NoReturn:
        raise Damaged(why, self.header)

    def read(self, size: int) -> bytes:
        """Read the next `size` bytes."""
        if size > self.length - self.at:
            self.fail("it is cut off")
        self.file.seek(self.at)
        data = self.file.read(size)
        if len(data) != size:
            self.fail("it is cut off")
        self.at += size
        return data

    def skip(self, size: int) -> None:
        """Skip a member's `size` bytes, and the rest of the last block."""
        self.at += -(-size // BLOCK) * BLOCK
        if self.at > self.length:
            self.fail("it is cut off")

    def checked(self, block: bytes) -> str:
        """Check that a block is a header; returns its type flag."""
        if sum(block) - sum(block[148:156]) + 8 * ord(" ") != self.number(block[148:156]):
            self.fail("there is no header")
        kind = chr(block[156]) if block[156] else FILE
        if self.strict:
            if block[257:265] != _GNU or kind not in "0123456LKS" or not block[156]:
                self.fail("there is no GNU tar header")
            if kind != SPARSE and block[345:] != _ZEROS[345:]:
                self.fail("a header has unexpected fields")
        return kind

    def number(self, field: bytes) -> int:
        """A non-negative number: octal, or binary after a byte of 0x80."""
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        found = _OCTAL.fullmatch(field)
        if found is None:
            self.fail("a header has no number where one belongs")
        return int(found[1] or b"0", 8)

    def text(self, field: bytes) -> bytes:
        text, _, rest = field.partition(b"\0")
        if self.strict and rest.strip(b"\0"):
            self.fail("a name has bytes after its end")
        return text

    def small(self, size: int) -> bytes:
        """The content of a header that describes the next member."""
        if size > LONGEST:
            self.fail("a name is too long")
        data = self.read(size)
        self.at += -size % BLOCK
        return data

    def long_name(self, name: bytes, size: int) -> None:
        data = self.small(size)
        if self.strict and (name in self.said or data.find(b"\0") != len(data) - 1):
            self.fail("a long name is malformed")
        self.said[name] = data.partition(b"\0")[0]

    def records(self, size: int, *, everywhere: bool) -> None:
        """Read pax records, `LENGTH NAME=VALUE` lines, for the next member or for `everywhere`."""
        data = self.small(size)
        found = {}
        at = 0
        while at < len(data):
            length = _RECORD.match(data, at)
            end = at + int(length[1]) if length else 0
            if length is None or end <= length.end() or data[end - 1 : end] != b"\n":
                self.fail("a pax record is malformed")
            name, _, value = data[length.end() : end - 1].partition(b"=")
            found[name] = value
            at = end
        if not everywhere:
            self.said.update(found)
        elif found.keys() & {b"path", b"linkpath", b"size"}:
            self.fail("a pax record gives all members one name or size")

    def member(self, kind: str, block: bytes, size: int) -> Member:
        path, link = self.text(block[:100]), self.text(block[157:257])
        if block[257:265] != _GNU and block[257:262] == b"ustar" and (prefix := self.text(block[345:500])):
            path = prefix + b"/" + path
        path = self.said.get(b"GNU.sparse.name", self.said.get(b"path", path))
        link = self.said.get(b"linkpath", link)
        if (told := self.said.get(b"size")) is not None:
            size = self.digits(told)
        if self.strict:
            self.check_strictly(kind, path, size)
        held = 0 if kind == LINK else size
        end = self.at + held
        if kind == SPARSE:
            length, extents = self.sparse(block, held)
            end = self.at + held  # more of its headers were read
        elif kind == FILE and self.said.get(b"GNU.sparse.major") == b"1":
            length, extents = self.pax_sparse(held)
        else:
            length, extents = held, ((0, held),)
            if any(name.startswith(b"GNU.sparse.") for name in self.said):
                kind = OLD_SPARSE
        start = self.at
        self.skip(end - start)
        mode, uid, gid = (self.number(block[at : at + 8]) for at in (100, 108, 116))
        uid, gid = (
            self.digits(self.said[name]) if name in self.said else found
            for name, found in ((b"uid", uid), (b"gid", gid))
        )
        name, target = (text.decode("utf-8", "surrogateescape") for text in (path, link))
        return Member(kind, name, target, mode, uid, gid, length, start, extents)

    def check_strictly(self, kind: str, path: bytes, size: int) -> None:
        if kind not in (FILE, SPARSE) and size:
            self.fail("something holds data that is no file")
        if kind != FOLDER and path.endswith(b"/"):  # GNU tar takes such a file for a folder
            self.fail("a file is named like a folder")
        if not path:
            self.fail("a name is missing")

    def sparse(self, block: bytes, held: int) -> tuple[int, tuple[tuple[int, int], ...]]:
        """How long a sparse file is, and its pieces, of which the archive holds `held` bytes."""
        length = self.number(block[483:495])
        extents: list[tuple[int, int]] = []
        entries, more = block[386:482], block[482]
        while True:
            for at in range(0, len(entries), 24):
                if not entries[at + 12]:
                    break
                extents.append((self.number(entries[at : at + 12]), self.number(entries[at + 12 : at + 24])))
            if not more:
                break
            if len(extents) > MOST_EXTENTS:
                self.fail("a sparse file has too many pieces")
            block = self.read(BLOCK)
            entries, more = block[:504], block[504]
        self.check_pieces(length, extents, held)
        return length, tuple(extents)

    def pax_sparse(self, held: int) -> tuple[int, tuple[tuple[int, int], ...]]:
        """As `sparse`, if the data begins with a list, one number to a line: pieces, then offset and length."""
        length = self.digits(self.said.get(b"GNU.sparse.realsize", b""))
        start, lines = self.at, [b""]
        wanted = 1
        while len(lines) <= wanted:
            if self.at - start >= held or len(lines[-1]) > BLOCK:
                self.fail("the list of a sparse file's pieces is cut off")
            lines[-1:] = (lines[-1] + self.read(BLOCK)).split(b"\n")
            if len(lines) > 1 and (wanted := 1 + 2 * self.digits(lines[0])) > 2 * MOST_EXTENTS:
                self.fail("a sparse file has too many pieces")
        numbers = [self.digits(line) for line in lines[1:wanted]]
        extents = list(zip(numbers[::2], numbers[1::2], strict=True))
        self.check_pieces(length, extents, held - (self.at - start))
        return length, tuple(extents)

    def digits(self, text: bytes) -> int:
        if not _DIGITS.fullmatch(text):
            self.fail("a size is not a number")
        return int(text)

    def check_pieces(self, length: int, extents: list[tuple[int, int]], held: int) -> None:
        """Check that a sparse file's pieces are in order and within it, and that the archive holds all of them."""
        end = 0
        for offset, size in extents:
            if offset < end:
                self.fail("the pieces of a sparse file overlap")
            end = offset + size
        if end > length or sum(size for _, size in extents) != held:
            self.fail("pieces of a sparse file are missing")
