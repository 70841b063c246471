"""The files of a copy, through a remote: packed where the source folder is, unpacked where the copy is made.

Files are cut into pieces of up to 4 MiB; small ones share a pack. A pack is a blob of the remote, one zstd frame,
and its name is the digest of its bytes: what is there already is not sent again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from obuild.errors import ObuildError, UsageError, words
from obuild.host import parallel, zstd
from obuild.plan.tree import Entry, Tree, open_file
from obuild.remotes.layer import Blob
from obuild.remotes.oci import digest_of
from obuild.remotes.protocol import IN_MEMORY, WORKERS, Remote
from obuild.remotes.slices import SLICE

#: Files of less share packs with others, in bytes.
SMALL = 1 << 20


class Part(NamedTuple):
    """A part of a file with this content: its sha256, and where the part begins and how long it is."""

    content: str
    start: int
    length: int


class Pack(NamedTuple):
    """A blob, and the parts of files that are in it, one after the other."""

    blob: Blob
    parts: tuple[Part, ...]


class Packed(NamedTuple):
    """The content of a tree, and the time of each of its entries, in seconds since the epoch."""

    packs: tuple[Pack, ...]
    times: tuple[int, ...]


def pack(remote: Remote, tree: Tree) -> Packed:
    """Send the files of a tree, as far as the remote lacks them. ObuildError if one was changed meanwhile."""

    def send(item: tuple[tuple[Part, ...], bytes]) -> Pack:
        parts, data = item
        return Pack(put(remote, data), parts)

    packs = parallel.each(send, _cut(tree), WORKERS, weight=lambda item: 2 * len(item[1]), most=IN_MEMORY)
    try:
        times = tuple(int((tree.root / entry.source).lstat().st_mtime) for entry in tree.entries)
        return Packed(tuple(sorted(packs)), times)
    except OSError as error:
        raise UsageError(f"cannot read {error.filename} to copy it: {words(error)}") from error


def put(remote: Remote, data: bytes) -> Blob:
    """Compress data and send it, unless it is there."""
    packed = zstd.compress(data)
    blob = Blob(digest_of(packed), len(packed))
    if not remote.has(blob.digest):
        remote.put(blob, packed)
    return blob


def get(remote: Remote, blob: Blob, most: int) -> bytes:
    """What `put` has sent: at most so many bytes. ObuildError if it is not there, or damaged."""
    try:
        return zstd.decompress(remote.get(blob), most)
    except ValueError as error:
        raise ObuildError(f"the blob {blob.digest} in {remote.name} is damaged: {error}") from error


def _cut(tree: Tree) -> Iterator[tuple[tuple[Part, ...], bytes]]:
    """The parts of all files, with their content: each content once, small ones together."""
    small: list[Part] = []
    held: list[bytes] = []
    room = SLICE
    seen = set()
    for entry in tree.entries:
        if entry.kind != "file" or not entry.size or entry.content in seen:
            continue
        seen.add(entry.content)
        for part, data in _pieces(tree.root / entry.source, entry):
            if entry.size >= SMALL:
                yield (part,), data
                continue
            if len(data) > room:
                yield tuple(small), b"".join(held)
                small, held, room = [], [], SLICE
            small.append(part)
            held.append(data)
            room -= len(data)
    if small:
        yield tuple(small), b"".join(held)


def _pieces(path: Path, entry: Entry) -> Iterator[tuple[Part, bytes]]:
    """The pieces of a file. ObuildError at its end if it is not what was hashed."""
    digest, start = hashlib.sha256(), 0
    with open_file(path) as file:
        while data := file.read(SLICE):
            digest.update(data)
            yield Part(entry.content, start, len(data)), data
            start += len(data)
    if digest.hexdigest() != entry.content:
        raise ObuildError(
            f"{entry.source!r} changed while it was being sent", hint="build again when nothing changes the source"
        )


def unpack(remote: Remote, packed: Packed, tree: Tree, folder: Path) -> Tree:
    """Fetch the files of a tree into an empty folder; returns the tree there.

    Whatever the tree says, nothing outside the folder is touched: the files in it have numbers for names. Only the
    owner may enter the folder, because files keep their set-user-id bits. ValueError if packs and tree do not fit.
    """
    sizes = {entry.content: entry.size for entry in tree.entries if entry.kind == "file"}
    names = {content: f"content-{number}" for number, content in enumerate(sizes)}
    for content, size in sizes.items():
        with (folder / names[content]).open("wb") as file:
            file.truncate(size)

    def fetch(pack: Pack) -> None:
        data = get(remote, pack.blob, SLICE)
        done = 0
        for part in pack.parts:
            piece = data[done : done + part.length]
            done += part.length
            if part.start + len(piece) > sizes[part.content]:
                raise ValueError("a pack has more than its files")
            with (folder / names[part.content]).open("r+b") as file:
                file.seek(part.start)
                file.write(piece)

    for _ in parallel.each(fetch, packed.packs, WORKERS, weight=lambda pack: 2 * SLICE, most=IN_MEMORY):
        pass
    entries, laid = [], set()
    for number, (entry, moment) in enumerate(zip(tree.entries, packed.times, strict=True)):
        path = folder / str(number)
        if entry.kind == "file":
            (shutil.copyfile if names[entry.content] in laid else os.rename)(folder / names[entry.content], path)
            names[entry.content] = path.name
            laid.add(path.name)
            path.chmod(entry.mode)
        elif entry.kind == "dir":
            path.mkdir()
        elif entry.kind == "symlink":
            path.symlink_to(entry.content)
        else:
            path.touch()
        os.utime(path, (moment, moment), follow_symlinks=False)
        entries.append(entry._replace(source=path.name))
    return Tree(folder, tuple(entries))
