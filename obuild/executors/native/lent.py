"""Files that a guest has only while a command runs, and what is put back after it.

The command may move a folder meanwhile, and put a symlink to one of the host in its place. So the folders are held
open: what is done afterwards is done in the same folders, wherever they are now.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath

from obuild.executors.native.guest_path import Places, writing

_OURS = Path("/etc/resolv.conf")

_Stamp = tuple[int, int] | None

#: No package starts a service in a step: 101 says that policy forbids it.
#: https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt
_POLICY = b"#!/bin/sh\nexit 101\n"


@contextmanager
def lent(places: Places, *, network: bool) -> Iterator[None]:
    """What commands find: policy-rc.d in guests with dpkg, and with a network the host's DNS servers."""
    with ExitStack() as stack:
        if network:
            text = _OURS.read_bytes() if _OURS.exists() else b""
            stack.enter_context(_replaced(places, "/etc/resolv.conf", text, 0o644))
        dpkg = places.host(places.resolve("/usr/bin/dpkg"))
        if dpkg is not None and dpkg.is_file():
            stack.enter_context(_replaced(places, "/usr/sbin/policy-rc.d", _POLICY, 0o755))
        yield


@contextmanager
def placeholder(places: Places, path: str) -> Iterator[str]:
    """Make an empty file to mount another one over, unless there is a file; yield its resolved path.

    It is removed afterwards, with the folders that were made for it and are empty.
    """
    target = places.resolve(path)
    file = places.host(target)
    if file is None or os.path.lexists(file):
        yield target
        return
    with ExitStack() as stack:
        for made in places.ensure_folder(str(PurePosixPath(target).parent), 0, 0):
            stack.callback(_remove_empty, made.name, stack.enter_context(_held(made.parent)))
        folder = stack.enter_context(_held(file.parent))
        with writing(path):
            _write(file.name, folder, b"", 0o644)
        stack.callback(_remove, file.name, folder)
        yield target


@contextmanager
def _replaced(places: Places, path: str, content: bytes, mode: int) -> Iterator[None]:
    """Let the guest have our file. If the command changes or removes it, that stays; else the guest's own returns.

    Nothing happens if its folder is missing. MachineError, and nothing has changed, if it cannot be written.
    """
    parent, _, name = path.rpartition("/")
    folder = places.host(places.resolve(parent))
    if folder is None or not folder.is_dir():
        yield
        return
    aside = f".{name}.obuild"
    with _held(folder) as fd:
        with writing(path):
            _put(name, aside, fd, content, mode)
        ours = _stamp(name, fd)
        try:
            yield
        except BaseException:
            with suppress(OSError):  # the disk may be lost
                _give_back(name, aside, fd, ours)
            raise
        _give_back(name, aside, fd, ours)


def _put(name: str, aside: str, folder: int, content: bytes, mode: int) -> None:
    with _same_time(folder):
        with suppress(FileNotFoundError):
            os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=folder)
        try:
            _write(name, folder, content, mode)
        except OSError:
            _restore(name, aside, folder)
            raise


def _give_back(name: str, aside: str, folder: int, ours: _Stamp) -> None:
    with _same_time(folder):
        if _stamp(name, folder) != ours:  # the command's own
            _remove(aside, folder)
        else:
            _restore(name, aside, folder)


def _restore(name: str, aside: str, folder: int) -> None:
    _remove(name, folder)
    with suppress(FileNotFoundError):
        os.rename(aside, name, src_dir_fd=folder, dst_dir_fd=folder)


def _write(name: str, folder: int, content: bytes, mode: int) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=folder)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, mode)  # whatever our umask is
        file.write(content)


@contextmanager
def _held(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _remove(name: str, folder: int) -> None:
    with suppress(OSError):  # the command may have put a folder there
        os.unlink(name, dir_fd=folder)


def _remove_empty(name: str, folder: int) -> None:
    with suppress(OSError):  # the command has put something there
        os.rmdir(name, dir_fd=folder)


@contextmanager
def _same_time(folder: int) -> Iterator[None]:
    """Keep the folder's times, whatever is done in it."""
    seen = os.fstat(folder)
    yield
    os.utime(folder, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def _stamp(name: str, folder: int) -> _Stamp:
    """The inode of a file and when it was changed last; None if there is none."""
    with suppress(FileNotFoundError):
        seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
        return seen.st_ino, seen.st_ctime_ns
    return None
