"""The caches of a store, for people: list them, remove one, take one out, put one in.

A cache is a tar archive that only guests unpack, as root and inside the guest. The host reads its table of
contents at most, and only when it is put in.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from obuild.errors import UsageError
from obuild.host import qemu_img, tar_reader
from obuild.host.fs import fsync
from obuild.host.regular import is_folder, open_file
from obuild.store import parts
from obuild.store.layers import Store
from obuild.store.volumes import escape


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache that holds something. `size` is in bytes, `changed` in seconds since the epoch."""

    name: str
    size: int
    changed: float


def listing(store: Store) -> list[Cache]:
    """All caches that hold something, by name."""
    found = []
    for name, archive in sorted(store.caches().items()):
        try:
            status = archive.stat()
        except FileNotFoundError:  # it is just being removed
            continue
        found.append(Cache(name, status.st_size, status.st_mtime))
    return found


def remove(store: Store, name: str) -> None:
    """Empty a cache. A step that has a copy of it goes on, and what it saves is dropped. UsageError if unknown."""
    _check_known(store, name)
    with store.cache_lock(name) as archive:
        _empty(archive)


def evict(store: Store, name: str, *, used: float) -> bool:
    """Empty a cache that was not used since `used`; False if it was, if a step has a copy, or if it is gone."""
    with store.cache_lock(name) as archive:
        last = last_used(archive)
        # who makes a copy after this look waits for our lock, and then begins with an empty cache
        if last is None or last > used or in_use(store, name):
            return False
        _empty(archive)
        return True


def in_use(store: Store, name: str) -> bool:
    """Whether a living process has a copy of the cache."""
    for copy in parts.entries(store.cache_tmp, parts.COPY):
        if copy.name.partition("-")[2] == f"c-{escape(name)}":
            with store.unowned(copy) as rubbish:
                if not rubbish and is_folder(copy):
                    return True
    return False


def last_used(archive: Path) -> float | None:
    """When a cache was last copied or replaced, in seconds since the epoch; None if it is empty.

    Taking a copy must not touch the archive, whose time is its version: it touches the folder.
    """
    with suppress(FileNotFoundError):
        return max(archive.stat().st_mtime, archive.parent.stat().st_mtime)
    return None


def _empty(archive: Path) -> None:
    archive.unlink(missing_ok=True)
    with suppress(OSError):  # it is gone already, or holds what is not ours
        archive.parent.rmdir()


def export(store: Store, name: str, file: Path, *, force: bool = False) -> None:
    """Copy a cache's archive to `file`, which appears whole or not at all.

    UsageError if the cache is unknown, or `file` is there and not `force`, or is a device or the like.
    """
    if file.is_dir():
        raise UsageError(f"{file} is a directory", hint="name the file to write, for example cache.tar")
    if file.exists() and not file.is_file():  # /dev/null, say: it would be replaced
        raise UsageError(f"{file} is not a regular file", hint="name the file to write, for example cache.tar")
    if file.exists() and not force:
        raise UsageError(f"{file} is there already", hint="--force replaces it")
    if not file.parent.is_dir():
        raise UsageError(f"there is no directory {file.parent}")
    _check_known(store, name)
    with tempfile.TemporaryDirectory(prefix=".obuild-", dir=file.parent) as folder:
        copy = Path(folder) / "cache.tar"
        with store.cache_lock(name) as archive:
            _check_known(store, name)
            qemu_img.copy(archive, copy)
        fsync(copy)
        copy.replace(file)


def put(store: Store, file: Path, name: str) -> None:
    """Make the tar archive `file` the cache `name`. UsageError if it is not one that a guest could unpack."""
    if not file.is_file():
        raise UsageError(f"there is no file {file}")
    with store.borrow_cache(name, empty=True) as copy:
        qemu_img.copy(file, copy.path)
        try:
            check(copy.path)
        except UsageError as error:
            raise UsageError(f"{file} {error.message}", hint=error.hint) from error
        copy.replace(copy.path)


def check(path: Path) -> None:
    """UsageError unless this is a whole tar archive with safe names; its message goes on after a file's name."""
    try:
        with open_file(path) as file:
            for member in tar_reader.members(file, strict=False):
                _check_name(member.path, "names")
                if member.kind == tar_reader.LINK:
                    _check_name(member.link, "links to")
    except tar_reader.Damaged as error:
        if not error.at:
            raise _no_archive(path) from error
        raise UsageError(f"is a tar archive that is damaged or cut off at byte {error.at}") from error


def _check_name(name: str, how: str) -> None:
    if name.startswith("/") or ".." in name.split("/"):
        shown = name if name.isprintable() else ascii(name)
        raise UsageError(
            f"{how} {shown!r}, which leads out of the cache",
            hint="pack it with: tar --create --file=FILE --directory=FOLDER .",
        )


def _no_archive(path: Path) -> UsageError:
    with open_file(path) as file:
        magic = file.read(6)
    for begins, how in (
        (b"\x1f\x8b", "gunzip"),
        (b"\xfd7zXZ", "unxz"),
        (b"BZh", "bunzip2"),
        (b"\x28\xb5\x2f", "unzstd"),
    ):
        if magic.startswith(begins):
            return UsageError("is compressed", hint=f"{how} it first: a cache is a plain tar archive")
    return UsageError("is not a whole tar archive", hint="a cache is what `tar --create` makes, not compressed")


def _check_known(store: Store, name: str) -> None:
    known = store.caches()
    if name not in known:
        there = ", ".join(name if name.isprintable() else ascii(name) for name in known)
        hint = f"there is: {there}" if there else "there are none yet"
        raise UsageError(f"there is no cache {name!r}", hint=hint)
