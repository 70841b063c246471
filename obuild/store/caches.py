"""The caches of a store: steps copy and save them; users list, remove, export and import them.

STORE/cache/c-NAME/cache.tar is an archive that only guests unpack, as root and inside the guest. The host only
reads its table of contents, and only on import. The mtime of the archive is its version; the mtime of its
folder is its last use. A copy is in cache-tmp/N-c-NAME, which is locked while a step has it. Steps that run on
this host also keep the content of an archive as a folder (`unpacked`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from obuild.errors import ObuildError, StoreError, UsageError
from obuild.host import failpoints, locks, qemu_img, stamp
from obuild.host.fs import discard, fsync, owned_folder, touch
from obuild.host.regular import is_file, is_folder, kind, open_file
from obuild.host.stamp import Stamp
from obuild.store import parts, unpacked
from obuild.store.usage import storage_errors


@dataclass(frozen=True, slots=True)
class Cache:
    """A non-empty cache. `size` is in bytes, `changed` in seconds since the epoch."""

    name: str
    size: int
    changed: float


class CacheCopy:
    """One step's copy of a cache: a tar archive that only guests ever unpack."""

    def __init__(self, name: str, path: Path, master: Path, lock: Path) -> None:
        self.name = name
        self.path = path
        self._master = master
        self._lock = lock
        self._taken: Stamp | None = None

    def take(self) -> None:
        """Copy the current archive; an empty cache has none."""
        with locks.file_lock(self._lock):
            self._taken = self._version()
            if self._taken is not None:
                touch(self._master.parent)
                _link(self._master, self.path)
                failpoints.reach("cache.copied")

    def save(self, archive: Path) -> bool:
        """Make `archive` the cache. If another step has saved it first, drop ours and return False."""
        with locks.file_lock(self._lock):
            if self._version() != self._taken:
                return False
            if self._taken is not None and same_content(self._master, archive):
                unpacked.bring_back(self.path, self._master)
                return True
            self._put(archive)
            return True

    def replace(self, archive: Path) -> None:
        """Make `archive` the cache unconditionally. What a step with an older copy saves later is dropped."""
        with locks.file_lock(self._lock):
            self._version()
            self._put(archive)

    def _put(self, archive: Path) -> None:
        self._master.parent.mkdir(exist_ok=True)
        fsync(archive)
        failpoints.reach("cache.saving")
        archive.rename(self._master)
        failpoints.reach("cache.saved")
        fsync(self._master.parent)
        fsync(self._master.parent.parent)
        unpacked.bring_back(self.path, self._master)

    def _version(self) -> Stamp | None:
        """The stamp of the archive; None if there is none. StoreError if it is not a file."""
        folder = self._master.parent
        for path, is_right in ((folder, is_folder), (self._master, is_file)):
            if os.path.lexists(path) and not is_right(path):
                hint = "`obuild fsck --repair` moves it out of the way"
                raise StoreError(f"{path} is {kind(path)}, where a cache should be", hint=hint)
        try:
            return stamp.of(self._master)
        except FileNotFoundError:
            return None


@dataclass(frozen=True, slots=True)
class Caches:
    """The caches of the store at `root`."""

    root: Path
    folder: Path
    copies: Path
    locks: Path

    # -- for a step

    @contextmanager
    def borrow(self, name: str, *, empty: bool = False) -> Iterator[CacheCopy]:
        """A private copy of a cache, removed when the block ends; its `save` makes another archive the cache.

        Nobody may write to the copy, which may be a link. With `empty` nothing is copied: for a caller that wants
        to `replace` the cache.
        """
        with storage_errors(self.root), owned_folder(self.copies, f"c-{escape(name)}") as folder:
            copy = CacheCopy(name, folder / "cache.tar", self.file(name), self._lock_file(name))
            if not empty:
                copy.take()
            yield copy

    # -- looking

    def file(self, name: str) -> Path:
        """The path of a cache's archive, which may not exist. It is only replaced as a whole."""
        return self.folder / f"c-{escape(name)}" / "cache.tar"

    def archives(self) -> dict[str, Path]:
        """The archives of all non-empty caches, by name."""
        return {name: file for name, file in self._files().items() if is_folder(file.parent) and is_file(file)}

    def _files(self) -> dict[str, Path]:
        """Where the archives of all caches are if they have one, by name."""
        names = sorted(name for name in os.listdir(self.folder) if name.startswith("c-"))
        return {unescape(name.removeprefix("c-")): self.folder / name / "cache.tar" for name in names}

    def listing(self) -> list[Cache]:
        """All non-empty caches, by name."""
        found = []
        for name, archive in sorted(self.archives().items()):
            with suppress(FileNotFoundError):  # it was just removed
                status = archive.stat()
                found.append(Cache(name, status.st_size, status.st_mtime))
        return found

    def last_used(self, name: str) -> float | None:
        """When a cache was last copied or replaced, in seconds since the epoch; None if it is empty.

        Copying must not touch the archive, whose mtime is its version, so it touches the folder.
        """
        archive = self.file(name)
        with suppress(FileNotFoundError):
            return max(archive.stat().st_mtime, archive.parent.stat().st_mtime)
        return None

    def outdated(self) -> list[str]:
        """The caches beside whose archives is a folder that does not have their content."""
        with suppress(FileNotFoundError):
            return [name for name, file in self._files().items() if unpacked.is_outdated(file)]
        return []

    def in_use(self, name: str) -> bool:
        """Whether a living process has a copy of a cache."""
        for copy in parts.entries(self.copies, parts.COPY):
            if copy.name.partition("-")[2] == f"c-{escape(name)}":
                with locks.folder_lock(copy, wait=False) as rubbish:
                    if not rubbish and is_folder(copy):
                        return True
        return False

    # -- changing

    def remove(self, name: str) -> None:
        """Remove a cache. A step that has a copy goes on; what it saves is dropped. UsageError if unknown."""
        self._check_known(name)
        with self.hold(name) as archive:
            _empty(archive)

    def evict(self, name: str, *, used: float) -> bool:
        """Remove a cache not used since `used`; False if it was used, a step has a copy, or it is gone."""
        with self.hold(name) as archive:
            last = self.last_used(name)
            # a step that takes a copy after this check waits for our lock, and then starts with an empty cache
            if last is None or last > used or self.in_use(name):
                return False
            _empty(archive)
            return True

    def forget(self, name: str) -> bool:
        """Remove the folder that does not have the content of a cache's archive; False if no such is there."""
        with self.hold(name) as archive:
            if not unpacked.is_outdated(archive):
                return False
            used = archive.parent.stat().st_mtime_ns
            discard(unpacked.folder_of(archive))
            os.utime(archive.parent, ns=(used, used))  # this was no use
            return True

    def export(self, name: str, file: Path, *, force: bool = False) -> None:
        """Copy a cache's archive to `file`, which appears complete or not at all.

        UsageError if the cache is unknown, or `file` exists without `force`, or is not a regular file.
        """
        import tempfile  # late: a build exports nothing

        if file.is_dir():
            raise UsageError(f"{file} is a directory", hint="name the file to write, for example cache.tar")
        if file.exists() and not file.is_file():  # such as /dev/null, which would be replaced
            raise UsageError(f"{file} is not a regular file", hint="name the file to write, for example cache.tar")
        if file.exists() and not force:
            raise UsageError(f"{file} already exists", hint="--force replaces it")
        if not file.parent.is_dir():
            raise UsageError(f"there is no directory {file.parent}")
        self._check_known(name)
        with tempfile.TemporaryDirectory(prefix=".obuild-", dir=file.parent) as folder:
            copy = Path(folder) / "cache.tar"
            with self.hold(name) as archive:
                self._check_known(name)
                qemu_img.copy(archive, copy)
            fsync(copy)
            copy.replace(file)

    def put(self, file: Path, name: str) -> None:
        """Make the tar archive `file` the cache `name`. UsageError if a guest could not unpack it."""
        if not file.is_file():
            raise UsageError(f"there is no file {file}")
        with self.borrow(name, empty=True) as copy:
            qemu_img.copy(file, copy.path)
            try:
                check(copy.path)
            except UsageError as error:
                raise UsageError(f"{file} {error.message}", hint=error.hint) from error
            copy.replace(copy.path)

    @contextmanager
    def hold(self, name: str) -> Iterator[Path]:
        """Keep others from copying or replacing a cache; yields the path of its archive, which may not exist."""
        with locks.file_lock(self._lock_file(name)):
            yield self.file(name)

    def _lock_file(self, name: str) -> Path:
        return self.locks / f"c-{escape(name)}.lock"

    def _check_known(self, name: str) -> None:
        known = self.archives()
        if name not in known:
            there = ", ".join(name if name.isprintable() else ascii(name) for name in known)
            hint = f"the caches are: {there}" if there else "there are none yet"
            raise UsageError(f"there is no cache {name!r}", hint=hint)


def _empty(archive: Path) -> None:
    archive.unlink(missing_ok=True)
    with suppress(ObuildError):  # it may be root's, and we are not: `prune` removes it
        discard(unpacked.folder_of(archive))
    with suppress(OSError):  # it is already gone, or has files that are not ours
        archive.parent.rmdir()


def _link(source: Path, dest: Path) -> None:
    """Copy an archive, which nobody changes: without copying its content, if another user does not own it."""
    try:
        os.link(source, dest)
    except OSError:
        qemu_img.copy(source, dest)


def check(path: Path) -> None:
    """UsageError unless it is a complete tar archive with safe names; the message follows a file's name."""
    from obuild.host import tar_reader  # late: a build never reads a cache

    try:
        with open_file(path) as file:
            for member in tar_reader.members(file, strict=False):
                _check_name(member.path, "names")
                if member.kind == tar_reader.LINK:
                    _check_name(member.link, "links to")
    except tar_reader.Damaged as error:
        if not error.at:
            raise _no_archive(path) from error
        raise UsageError(f"is a tar archive that is damaged or truncated at byte {error.at}") from error


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
    return UsageError("is not a complete tar archive", hint="a cache is an uncompressed archive of `tar --create`")


def escape(name: str) -> str:
    """A cache's name as a file name: letters, digits and `.-_` stay, other bytes become %XX."""
    from urllib.parse import quote

    quoted = quote(name.encode("utf-8", "surrogateescape"), safe="")
    return quoted.replace("~", "%7E")


def unescape(name: str) -> str:
    """The reverse of `escape`."""
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(name).decode("utf-8", "surrogateescape")


def same_content(one: Path, other: Path) -> bool:
    """Whether two archives have the same bytes."""
    import filecmp  # late: a cached build compares nothing

    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)
