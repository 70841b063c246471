"""How two layers differ, in their packages and their files."""

from __future__ import annotations

import bisect
import hashlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from obuild.exports.packages.all import Inventory, inventory
from obuild.host import qemu_img
from obuild.host.trees.in_place import InPlace
from obuild.host.trees.nodes import Node, Tree, encode

_WINDOW = 1 << 20


@dataclass(frozen=True, slots=True)
class ChangedPackage:
    """A package that only one layer has, or in another version.

    `before` is "" if it is new, `after` if it is gone. Several installed versions are separated by commas.
    """

    name: str
    arch: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """A file, folder, link or device that only one layer has, or that differs.

    `change` is "added", "removed" or "changed". Of a changed one, `what` has one or more of type, mode, owner,
    content, target, device and xattrs. Sizes are in bytes, None where it is not there or no file.
    """

    path: str
    change: str
    what: tuple[str, ...]
    before: int | None
    after: int | None


@dataclass(frozen=True, slots=True)
class Differences:
    """What is different in the second of two layers, sorted by name and by path."""

    packages: tuple[ChangedPackage, ...]
    files: tuple[ChangedFile, ...]


class Owners:
    """Which image has each part of the disks of two layers.

    What both have from the same place of the same image is the same: it need not be read.
    """

    def __init__(self, one: Path, two: Path) -> None:
        self._one, self._two = (_Parts(qemu_img.allocation(image)) for image in (one, two))

    def same(self, one: Node, two: Node) -> bool | None:
        """Whether two files have the same content; None if they are not in the same places of their disks."""
        if not isinstance(one.source, InPlace) or not isinstance(two.source, InPlace):
            return None
        places = one.source.places(one)
        if places != two.source.places(two):
            return None
        disks = one.source.disk, two.source.disk
        parts = (part for _, place, length in places for part in self._different(place, place + length))
        return all(disks[0].read(start, length) == disks[1].read(start, length) for start, length in parts)

    def _different(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of a part of the disks is not from the same image, in pieces, as offset and length."""
        one, two = self._one.of(start, end), self._two.of(start, end)
        first = second = None
        for at, after in pairwise([*sorted({*one, *two}), end]):
            first, second = one.get(at, first), two.get(at, second)
            if first != second:
                yield from ((place, min(_WINDOW, after - place)) for place in range(at, after, _WINDOW))


class _Parts:
    """The parts of one disk, in order; neighbours of the same image are one."""

    def __init__(self, allocation: list[tuple[int, int, Path | None]]) -> None:
        self._starts: list[int] = []
        self._images: list[Path | None] = []
        for image, parts in groupby(allocation, lambda part: part[2]):
            self._starts.append(next(parts)[0])
            self._images.append(image)

    def of(self, start: int, end: int) -> dict[int, Path | None]:
        """The images that a part of the disk is from, each by the offset at which it begins; one is at `start`."""
        first = bisect.bisect_right(self._starts, start) - 1
        last = bisect.bisect_left(self._starts, end)
        return {max(self._starts[at], start): self._images[at] for at in range(first, last)}


class _Pair(NamedTuple):
    before: Node | None
    after: Node | None


def compare(before: Tree, after: Tree, owners: Owners | None = None) -> Differences:
    """What is different in the tree `after`. Times are not compared. ObuildError if a tree is damaged."""
    files = (_file(pair, owners) for pair in _pairs(before, after))
    packages = _packages(inventory(before), inventory(after))
    return Differences(tuple(packages), tuple(file for file in files if file is not None))


def _pairs(before: Tree, after: Tree) -> Iterator[_Pair]:
    """The nodes of both trees, those with the same path together. Few are in memory at a time."""
    walks = before.walk(), after.walk()
    one, two = (next(walk, None) for walk in walks)
    while one or two:
        if two is None or (one is not None and _order(one) < _order(two)):
            yield _Pair(one, None)
            one = next(walks[0], None)
        elif one is None or _order(two) < _order(one):
            yield _Pair(None, two)
            two = next(walks[1], None)
        else:
            yield _Pair(one, two)
            one, two = (next(walk, None) for walk in walks)


def _order(node: Node) -> list[bytes]:
    """`walk` is in this order."""
    return encode(node.path).split(b"/")


def _file(pair: _Pair, owners: Owners | None) -> ChangedFile | None:
    path = "/" + next(node.path for node in pair if node is not None)
    before, after = (node.size if node is not None and node.is_file else None for node in pair)
    if pair.before is None or pair.after is None:
        return ChangedFile(path, "removed" if pair.after is None else "added", (), before, after)
    what = tuple(_what(pair.before, pair.after, owners))
    return ChangedFile(path, "changed", what, before, after) if what else None


def _what(one: Node, two: Node, owners: Owners | None) -> Iterator[str]:
    """What is different in two nodes with the same path."""
    if stat.S_IFMT(one.mode) != stat.S_IFMT(two.mode):
        yield "type"
        return
    if one.mode != two.mode:
        yield "mode"
    if (one.uid, one.gid) != (two.uid, two.gid):
        yield "owner"
    if one.is_file and not _same_content(one, two, owners):
        yield "content"
    if one.is_link and one.source.target(one) != two.source.target(two):
        yield "target"
    if one.device != two.device:
        yield "device"
    if one.source.xattrs(one) != two.source.xattrs(two):
        yield "xattrs"


def _same_content(one: Node, two: Node, owners: Owners | None) -> bool:
    if one.size != two.size:
        return False
    known = owners.same(one, two) if owners is not None else None
    return digest(one) == digest(two) if known is None else known


def digest(file: Node) -> bytes:
    """A digest of a file's content, which does not depend on where it has holes, or blocks of zeros."""
    hasher = hashlib.sha256()
    for number, pieces in groupby(_cut(file), lambda piece: piece[0] // _WINDOW):
        window = bytearray(_WINDOW)
        for offset, piece in pieces:
            at = offset - number * _WINDOW
            window[at : at + len(piece)] = piece
        if data := window.rstrip(b"\0"):
            hasher.update(b"%d %d\n" % (number, len(data)))
            hasher.update(data)
    return hasher.digest()


def _cut(file: Node) -> Iterator[tuple[int, bytes]]:
    """The pieces of a file, cut so that none reaches beyond a window."""
    for offset, piece in file.source.pieces(file):
        first = _WINDOW - offset % _WINDOW
        yield offset, piece[:first]
        for at in range(first, len(piece), _WINDOW):
            yield offset + at, piece[at : at + _WINDOW]


def _packages(before: Inventory, after: Inventory) -> Iterator[ChangedPackage]:
    one, two = _versions(before), _versions(after)
    for name, arch in sorted(one.keys() | two.keys()):
        was, now = one.get((name, arch), ""), two.get((name, arch), "")
        if was != now:
            yield ChangedPackage(name, arch, was, now)


def _versions(found: Inventory) -> dict[tuple[str, str], str]:
    versions: dict[tuple[str, str], list[str]] = {}
    for package in found.packages:
        epoch = f"{package.epoch}:" if package.epoch else ""
        versions.setdefault((package.name, package.arch), []).append(epoch + package.version)
    return {name: ", ".join(each) for name, each in versions.items()}
