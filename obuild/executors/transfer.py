"""Moves files in and out of a guest: trees and caches as tar streams (or by scp), secrets through a pipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from obuild.events import Phase, Teller
from obuild.guests.all import Guest, Piping
from obuild.plan import archive
from obuild.plan.steps import Command, Extract, Graft, Transfer
from obuild.spec import UnixUser, WindowsUser


class Line(Protocol):
    """A connection to a guest: SSH, or the resident shell. Errors are those of ssh.Connection."""

    def run(self, command: str, script: Callable[[str], bytes], output: Callable[[bytes], object]) -> int: ...
    def check(self, command: str, script: bytes, *, what: str) -> None: ...
    def stream(self, command: str, send: Callable[[Any], None], *, what: str) -> None: ...
    def fetch(self, command: str, script: bytes, out: archive.Sink, *, what: str) -> None: ...
    def put(self, source: Path, dest: str) -> None: ...
    def get(self, source: str, dest: Path) -> None: ...


def send_tree(connection: Line, guest: Guest, login: str, transfer: Transfer, tell: Teller) -> None:
    """Unpack the tree in the guest, owned by the transfer's user. ObuildError if a file changed meanwhile."""
    user = transfer.user
    uid, gid = _owner(user)
    command = guest.receive_command(login, transfer.dest, user)
    with tell.phase("sending", transfer.dest, transfer.tree.size) as phase:
        connection.stream(
            command,
            lambda sink: archive.send(transfer.tree, sink, uid=uid, gid=gid, sent=phase.advance),
            what=f"copying to {transfer.dest}",
        )


def _owner(user: UnixUser | WindowsUser) -> tuple[int, int]:
    """Return the owner of files in an archive for a guest. A guest with user names sets the owner itself."""
    return (user.uid, user.gid) if isinstance(user, UnixUser) else (0, 0)


def take_tree(connection: Line, guest: Guest, login: str, extract: Extract, archive: Path, tell: Teller) -> None:
    """Write files of a guest to `archive`, a tar file on the host, which is not unpacked there."""
    what = f"copying from the build {extract.origin}"
    root = guest.root_shell(login)
    packing = guest.pack_files(
        extract.src, exclude=extract.exclude, rename=extract.rename, owner=_owner(extract.user)
    )
    with tell.phase("fetching", extract.origin) as phase:
        if not packing.file:
            _fetch(connection, root, packing.script, archive, phase, what=what)
            return
        connection.check(root, packing.script, what=what)
        connection.get(packing.file, archive)
        connection.check(root, packing.remove, what=what)


def _fetch(connection: Line, root: str, script: bytes, archive: Path, phase: Phase, *, what: str) -> None:
    with archive.open("wb") as out:
        connection.fetch(root, script, Counted(out, phase), what=what)


class Counted:
    """A file to write to that counts its bytes."""

    def __init__(self, out: BinaryIO, phase: Phase) -> None:
        self._out = out
        self._phase = phase

    def write(self, data: bytes, /) -> int:
        self._phase.advance(len(data))
        return self._out.write(data)


def send_archive(connection: Line, guest: Guest, login: str, graft: Graft, archive: Path, tell: Teller) -> None:
    """Unpack an archive that another guest made."""
    command = guest.receive_command(login, graft.dest, graft.user)
    with tell.phase("sending", graft.dest, archive.stat().st_size) as phase:
        connection.stream(command, partial(write_file, archive, phase), what=f"copying to {graft.dest}")


def send_caches(
    connection: Line, guest: Guest, login: str, command: Command, archives: Sequence[Path], tell: Teller
) -> None:
    """Mount each cache at its target, with the content of its archive, or empty if there is no file."""
    root = guest.root_shell(login)
    connection.check(root, guest.prepare_scratch(), what="making room for caches")
    for slot, (cache, file) in enumerate(zip(command.caches, archives, strict=True)):
        size = file.stat().st_size if file.exists() else 0
        with tell.phase("sending", cache.name, size) as phase:
            what = f"mounting cache {cache.name}"
            connection.check(root, guest.open_cache(slot, cache.target, command.user), what=what)
            if size:
                what = f"unpacking cache {cache.name}"
                _fill_cache(connection, guest, login, slot, file, phase, what=what)


def _fill_cache(
    connection: Line, guest: Guest, login: str, slot: int, archive: Path, phase: Phase, *, what: str
) -> None:
    if isinstance(guest, Piping):
        connection.stream(guest.receive_cache(login, slot), partial(write_file, archive, phase), what=what)
    else:
        connection.put(archive, guest.cache_archive(slot))
        connection.check(guest.root_shell(login), guest.unpack_cache(slot), what=what)


def send_secrets(
    connection: Line, guest: Guest, login: str, command: Command, values: Mapping[str, bytes]
) -> None:
    """Put each secret's value where the command expects it, in memory only."""
    root = guest.root_shell(login)
    connection.check(root, guest.prepare_secrets(), what="making room for secrets")
    for slot, secret in enumerate(command.secrets):
        what = f"placing the secret {secret.name}"
        connection.stream(guest.receive_secret(login, slot), partial(_write, values[secret.name]), what=what)
        connection.check(root, guest.open_secret(slot, secret.target, command.user), what=what)


def remove_secrets(connection: Line, guest: Guest, login: str, command: Command) -> None:
    """Remove every trace of the secrets from the guest."""
    script = guest.close_secrets(secret.target for secret in command.secrets)
    connection.check(guest.root_shell(login), script, what="removing the secrets")


def _write(data: bytes, sink: archive.Sink) -> None:
    sink.write(data)


def write_file(path: Path, phase: Phase, sink: archive.Sink) -> None:
    """Write a file's content to a command's stdin."""
    with path.open("rb") as file:
        while data := file.read(1 << 18):
            sink.write(data)
            phase.advance(len(data))


def fetch_caches(
    connection: Line, guest: Guest, login: str, command: Command, archives: Sequence[Path], tell: Teller
) -> tuple[Path, ...]:
    """Fetch each cache's content to a file beside its archive, and unmount the caches in the guest."""
    fetched = tuple(file.with_suffix(".new") for file in archives)
    for slot, cache in reversed(tuple(enumerate(command.caches))):
        with tell.phase("fetching", cache.name) as phase:
            what = f"packing cache {cache.name}"
            _fetch_cache(connection, guest, login, slot, fetched[slot], phase, what=what)
    script = guest.close_caches(cache.target for cache in command.caches)
    connection.check(guest.root_shell(login), script, what="unmounting caches")
    return fetched


def _fetch_cache(
    connection: Line, guest: Guest, login: str, slot: int, archive: Path, phase: Phase, *, what: str
) -> None:
    root = guest.root_shell(login)
    if isinstance(guest, Piping):
        _fetch(connection, root, guest.send_cache(slot), archive, phase, what=what)
    else:
        connection.check(root, guest.pack_cache(slot), what=what)
        connection.get(guest.cache_archive(slot), archive)
