"""The OS families, one module each. They return scripts and command lines, and run nothing.

Scripts go to the stdin of an administrator's shell (`root_shell`); the commands `receive_…` take bytes on
their stdin.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from obuild.guests import freebsd, linux, linux_agent, openbsd, windows
from obuild.guests.tar import Packing
from obuild.spec import UnixUser, WindowsUser

User = UnixUser | WindowsUser


class Common(Protocol):
    """What every family has. Paths are absolute, and users are of a kind that the OS has."""

    def root_shell(self, login: str) -> str:
        """The command that runs a script from its stdin as root."""

    def run_script(
        self, argv: Iterable[str], *, cwd: str, env: Iterable[tuple[str, str]], user: User, mark: str
    ) -> bytes:
        """Run argv as `user` in `cwd`, which is made if missing; then print `mark STATUS` and a newline.

        The mark comes through the same pipe as stdout and stderr, after all output of the command.
        """

    def shell_command(self, login: str, *, cwd: str, env: Iterable[tuple[str, str]], user: User) -> str:
        """An interactive shell, at a terminal or a pipe, in the place of `run_script`'s command.

        It ends with the shell's exit status. It is a command line and not a script, for stdin is what the user
        types: UsageError if `env` is too large for one.
        """

    def pack_files(
        self, src: Iterable[str], *, exclude: Iterable[str], rename: str | None, owner: tuple[int, int]
    ) -> Packing:
        """Pack files of the guest into a tar archive, with holes, all owned by the uid and gid `owner`.

        Each is stored under its basename, a root folder and `FOLDER/.` as their contents; a single one is stored
        as `rename`. Files with a name in `exclude` are left out. If a source is missing, the script fails and
        names it.
        """

    def receive_command(self, login: str, dest: str, user: User) -> str:
        """Unpack a tar stream from stdin in the folder `dest`, owned by `user`."""

    def prepare_scratch(self) -> bytes:
        """Prepare the place for caches."""

    def open_cache(self, slot: int, target: str, user: User) -> bytes:
        """Put an empty folder, owned by `user`, at `target`."""

    def close_caches(self, targets: Iterable[str]) -> bytes:
        """Remove every trace of the caches; `targets` are all of them, in order."""

    def prepare_secrets(self) -> bytes:
        """Prepare the place for secrets: in memory, if the OS has a file system for that."""

    def receive_secret(self, login: str, slot: int) -> str:
        """Take a secret's value from stdin."""

    def open_secret(self, slot: int, target: str, user: User) -> bytes:
        """Put a secret's file, readable by `user` only, at `target`."""

    def close_secrets(self, targets: Iterable[str]) -> bytes:
        """Remove every trace of the secrets; `targets` are all of them, in order."""

    def power_off(self) -> bytes:
        """Power off, for a guest that does not react to the power button."""


@runtime_checkable
class Piping(Common, Protocol):
    """A family that packs and unpacks caches through SSH's pipes: the faster way."""

    def receive_cache(self, login: str, slot: int) -> str:
        """Fill an open cache from the tar archive on stdin."""

    def send_cache(self, slot: int) -> bytes:
        """Write a cache's tar archive, and nothing else, to stdout.

        Called for each cache, the last first, once the command has ended.
        """


class Copying(Common, Protocol):
    """A family whose pipes change bytes: a cache's archive is a file in the guest, copied by scp."""

    def cache_archive(self, slot: int) -> str:
        """The path of a cache's archive in the guest, for scp."""

    def unpack_cache(self, slot: int) -> bytes:
        """Fill an open cache from its archive, and remove the archive."""

    def pack_cache(self, slot: int) -> bytes:
        """Make a cache's archive. Called for each cache, the last first, once the command has ended."""


@runtime_checkable
class Freezing(Protocol):
    """A family whose disks can be frozen, so that nothing more is written to them."""

    def freeze_script(self, mark: str) -> bytes:
        """Write out and freeze all disks, the root last; then print `mark STATUS` and a newline."""


Guest = Piping | Copying

#: By the `os` of a base image's card.
GUESTS: dict[str, Guest] = {"linux": linux, "freebsd": freebsd, "openbsd": openbsd, "windows": windows}


class Home(Protocol):
    """A family with a resident shell, so that its machines can be frozen and saved."""

    def start(self, mark: str) -> bytes:
        """Start the shell, then print `mark STATUS` and a newline, as `run_script` does.

        If the guest lacks something, the status is LACKING, and the output before it says in a few words what.
        """


LACKING = linux_agent.LACKING

#: The families that can be kept warm, by the `os` of a base image's card.
HOMES: dict[str, Home] = {"linux": linux_agent}
