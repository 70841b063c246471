"""A tree as a tar file: the same tree gives the same bytes.

The format is POSIX.1-2001 pax, with xattrs as SCHILY.xattr and holes as GNU.sparse 1.0, which GNU tar, libarchive,
mksquashfs and Python read: https://www.gnu.org/software/tar/manual/html_node/PAX-1.html
Sockets are left out, because a tar file cannot have them. Owners are numbers, times whole seconds.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

from obuild.host import sparse
from obuild.host.trees.nodes import FileSystem, Node, Tree, decode, encode

#: Files with at least this many bytes of holes are written with them.
SPARSE = 64 << 10

_BLOCK = tarfile.BLOCKSIZE

#: What ends a tar file.
END = bytes(2 * _BLOCK)
#: Shorter than the field, because tarfile ends the name of a folder with a slash.
_LONGEST = tarfile.LENGTH_NAME - 1
_TYPES = {
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFREG: tarfile.REGTYPE,
}

Runs = list[tuple[int, int]]


def write(tree: Tree, out: Path) -> None:
    """Write a tree to a new file, whose own mtime becomes the newest one in the tree.

    ObuildError if the tree is damaged, OSError if the file cannot be written.
    """
    newest = 0
    with out.open("wb") as file:
        for node, pieces in entries(tree):
            newest = max(newest, node.mtime)
            for piece in pieces:
                file.write(piece)
        file.write(END)
    os.utime(out, (newest, newest))


def entries(tree: Tree) -> Iterator[tuple[Node, Iterator[bytes]]]:
    """The nodes of a tree, and of each the part of the tar file. All parts and END are the file."""
    first: dict[tuple[FileSystem, int], str] = {}
    for node in tree.walk():
        if stat.S_IFMT(node.mode) not in _TYPES:
            continue
        known = None
        if node.links > 1 and not node.is_folder:
            known = first.get((node.source, node.inode))
            first.setdefault((node.source, node.inode), node.path)
        if known is not None:
            yield node, _header(_entry(node, tarfile.LNKTYPE), node.path, known, {})
        elif node.is_file:
            yield node, _file(node)
        else:
            target = node.source.target(node) if node.is_link else ""
            yield node, _header(_entry(node), node.path, target, _records(node))


def _file(node: Node) -> Iterator[bytes]:
    runs = _joined(node)
    records, entry, path = _records(node), _entry(node), node.path
    if node.size - sum(length for _, length in runs) >= SPARSE:
        if not runs or sum(runs[-1]) < node.size:
            runs.append((node.size, 0))
        numbers = [len(runs), *(number for run in runs for number in run)]
        table = _padded("".join(f"{number}\n" for number in numbers).encode())
        real = {"major": b"1", "minor": b"0", "name": encode(path), "realsize": b"%d" % node.size}
        records |= {f"GNU.sparse.{key}": value for key, value in real.items()}
        entry.size = len(table) + sum(length for _, length in runs)
        # Readers that do not know GNU.sparse.name see this one. A longer name would need the record `path`, which
        # Python takes for the real one.
        name = f"GNUSparseFile.0/{node.name}"
        yield from _header(entry, decode(encode(name)[:_LONGEST]), "", records)
        yield table
    else:
        runs = [(0, node.size)]
        entry.size = node.size
        yield from _header(entry, path, "", records)
    yield from _data(node, runs)
    yield bytes(-entry.size % _BLOCK)


def _joined(node: Node) -> Runs:
    """Where a file has data, in as few runs as possible."""
    runs: Runs = []
    for offset, length in node.source.extents(node):
        if runs and sum(runs[-1]) == offset:
            runs[-1] = (runs[-1][0], runs[-1][1] + length)
        else:
            runs.append((offset, length))
    return runs


def _data(node: Node, runs: Runs) -> Iterator[bytes]:
    """The content of a file within `runs`, with zeros where a run has holes."""
    pieces = node.source.pieces(node)
    offset, piece = next(pieces, (node.size, b""))
    for at, length in runs:
        end = at + length
        while at < end:
            if offset >= end or not piece:
                yield from sparse.zeros(end - at)
                break
            yield from sparse.zeros(offset - at)
            yield piece
            at = offset + len(piece)
            offset, piece = next(pieces, (node.size, b""))


def _records(node: Node) -> dict[str, bytes]:
    return {f"SCHILY.xattr.{name}": value for name, value in node.source.xattrs(node).items()}


def _entry(node: Node, type: bytes = b"") -> tarfile.TarInfo:
    entry = tarfile.TarInfo()
    entry.type = type or _TYPES[stat.S_IFMT(node.mode)]
    entry.mode, entry.uid, entry.gid, entry.mtime = stat.S_IMODE(node.mode), node.uid, node.gid, node.mtime
    entry.devmajor, entry.devminor = node.device
    return entry


def _header(entry: tarfile.TarInfo, path: str, target: str, records: dict[str, bytes]) -> Iterator[bytes]:
    """The header of an entry, after one with the records that it needs."""
    # Only the root has a dot in its name: mksquashfs refuses others.
    entry.name, entry.linkname = (f"{path}/" if entry.isdir() else path) if path else "./", target
    for field, key, longest in (("name", "path", _LONGEST), ("linkname", "linkpath", tarfile.LENGTH_LINK)):
        text = encode(getattr(entry, field))
        if len(text) > longest:
            records[key] = text
            setattr(entry, field, decode(text[:longest]))
    for field, digits in (("uid", 7), ("gid", 7), ("size", 11), ("mtime", 11)):
        number = getattr(entry, field)
        if not 0 <= number < 8**digits:
            records[field] = b"%d" % number
            setattr(entry, field, 0)
    if records:
        body = b"".join(_record(key.encode(), value) for key, value in sorted(records.items()))
        before = tarfile.TarInfo(decode(b"./PaxHeaders/" + encode(path)[-80:]))
        before.type, before.size = tarfile.XHDTYPE, len(body)
        yield _block(before)
        yield _padded(body)
    yield _block(entry)


def _block(entry: tarfile.TarInfo) -> bytes:
    return entry.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")


def _record(key: bytes, value: bytes) -> bytes:
    """A line of a pax header; its length counts the digits of the length."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)
