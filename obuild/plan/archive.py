"""The files of a copy as a tar archive: send one to a guest, or read one that a guest has packed.

Exactly what was hashed is sent, or sending fails. A guest's archive is never unpacked on the host.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

if TYPE_CHECKING:
    import tarfile

from obuild.errors import ObuildError
from obuild.host import tar_reader
from obuild.plan.tree import Entry, Manifest, Tree, open_file, readlink

#: The largest total size of the files in a guest's archive, in bytes. A sparse file of 8 EiB fits into a small
#: archive, and hashing it would take years.
MOST_CONTENT = 1 << 40

_ZEROS = bytes(1 << 20)


class Sink(Protocol):
    """The destination of a tar stream."""

    def write(self, data: bytes, /) -> object: ...


def send(
    tree: Tree, sink: Sink, *, uid: int, gid: int, sent: Callable[[int], object] = lambda count: None
) -> None:
    """Stream the tree to `sink` as a GNU tar archive, everything owned by uid:gid, with times.

    `sent` is called with the number of bytes of each piece of a file; their sum is `tree.size`.
    ObuildError if a file has changed since the tree was hashed; the stream then has no end-of-archive
    mark and must not be used. `sink` must not raise OSError.
    """
    import tarfile

    out = cast(BinaryIO, sink)
    # errors: names that are not UTF-8 keep their bytes
    with tarfile.open(
        fileobj=out, mode="w|", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for entry in tree.entries:
            info = tarfile.TarInfo(entry.path)
            info.uid, info.gid, info.mode = uid, gid, entry.mode
            try:
                _add(archive, info, tree.root / entry.source, entry, sent)
            except OSError as error:
                raise _changed(entry) from error


def _add(
    archive: tarfile.TarFile, info: tarfile.TarInfo, path: Path, entry: Entry, sent: Callable[[int], object]
) -> None:
    status = path.lstat()
    info.mtime = int(status.st_mtime)
    match entry.kind:
        case "dir":
            info.type = b"5"
            archive.addfile(info)
        case "symlink":
            info.type, info.linkname = b"2", entry.content
            if readlink(path) != entry.content:
                raise _changed(entry)
            archive.addfile(info)
        case "link":
            info.type, info.linkname = b"1", entry.content
            archive.addfile(info)
        case "file":
            info.size = entry.size
            _add_file(archive, info, path, entry, sent)


def _add_file(
    archive: tarfile.TarFile, info: tarfile.TarInfo, path: Path, entry: Entry, sent: Callable[[int], object]
) -> None:
    with open_file(path) as file:
        reader = _HashingReader(file, sent)
        archive.addfile(info, reader)  # type: ignore[arg-type]  # it only calls read
        status = os.fstat(file.fileno())
        same = reader.hash.hexdigest() == entry.content and status.st_size == entry.size
        if not same or stat.S_IMODE(status.st_mode) != entry.mode:
            raise _changed(entry)


class _HashingReader:
    def __init__(self, file: BinaryIO, sent: Callable[[int], object]) -> None:
        self.file = file
        self.sent = sent
        self.hash = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.hash.update(data)
        self.sent(len(data))
        return data


def _changed(entry: Entry) -> ObuildError:
    return ObuildError(
        f"{entry.source!r} changed while it was being copied",
        hint="nothing was saved; build again when nothing changes the source directory",
    )


def manifest_of(path: Path, *, owner: tuple[int, int] | None = None, pax: bool = False) -> Manifest:
    """The manifest of a tar archive that a guest made; nothing is unpacked here.

    It must be in GNU tar's strict format, which every program reads alike; with `pax`, other formats are accepted.
    ObuildError if it is damaged, holds what a copy cannot (such as a device), has paths that lead outside, or, if
    `owner` (uid, gid) is given, has files of another owner: a guest would not unpack what the manifest says.
    """
    found = []
    total = 0
    try:
        with path.open("rb") as file:
            for member in tar_reader.members(file, strict=not pax):
                total += member.size
                if total > MOST_CONTENT:
                    raise ObuildError(f"the guest sent files of more than {MOST_CONTENT >> 40} TiB")
                if owner not in (None, (member.uid, member.gid)):
                    raise ObuildError(f"the guest sent {member.path!r} with the wrong owner")
                found.append(_described(file, member))
    except tar_reader.Damaged as error:
        raise ObuildError(f"the guest sent a damaged tar archive: {error}") from error
    return tuple(found)


def _described(file: BinaryIO, member: tar_reader.Member) -> tuple[str, ...]:
    path = member.path.rstrip("/") if member.kind == tar_reader.FOLDER else member.path
    path = path.removeprefix("./")
    if path.startswith("/") or ".." in path.split("/"):
        raise ObuildError(f"the guest sent an archive with the path {member.path!r}")
    mode = f"{member.mode & 0o7777:o}"
    match member.kind:
        case tar_reader.FOLDER:
            return ("dir", path, mode, "")
        case tar_reader.SYMLINK:
            return ("symlink", path, "777", member.link)
        case tar_reader.LINK:
            return ("link", path, "0", member.link.removeprefix("./"))
        case tar_reader.FILE | tar_reader.SPARSE:
            return ("file", path, mode, _content(file, member))
        case tar_reader.OLD_SPARSE:
            raise ObuildError(f"the guest sent {path!r} as a sparse file in an old format")
    raise ObuildError(
        f"cannot copy {path!r} from the build: it is neither a file, a folder nor a symlink",
        hint=f"leave it out: (exclude {path.rpartition('/')[2]})",
    )


def _content(file: BinaryIO, member: tar_reader.Member) -> str:
    """The sha256 of a member's file."""
    digest = hashlib.sha256()
    file.seek(member.start)
    end = 0
    for offset, size in member.extents:
        _add_zeros(digest, offset - end)
        _add_bytes(digest, file, size)
        end = offset + size
    _add_zeros(digest, member.size - end)
    return digest.hexdigest()


def _add_zeros(digest: hashlib._Hash, count: int) -> None:
    for _ in range(count // len(_ZEROS)):
        digest.update(_ZEROS)
    digest.update(_ZEROS[: count % len(_ZEROS)])


def _add_bytes(digest: hashlib._Hash, file: BinaryIO, count: int) -> None:
    while data := file.read(min(count, len(_ZEROS))):
        digest.update(data)
        count -= len(data)
