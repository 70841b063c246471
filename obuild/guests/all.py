"""What OS families need to be told, each a module that spells it: they return command lines and run nothing.

A guest's own user, environment and file system are reached by an administrator's shell (`root_shell`) that
takes a script on its stdin, or by a command (`receive_…`) that takes bytes on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from obuild.guests import freebsd, linux, linux_agent, openbsd, windows
from obuild.guests.tar import Packing
from obuild.spec import UnixUser, WindowsUser

User = UnixUser | WindowsUser


class Common(Protocol):
    """What every member spells. Paths are absolute, and users of a kind that the OS knows."""

    def root_shell(self, login: str) -> str:
        """The command whose stdin takes a script that runs as root."""

    def run_script(
        self, argv: Iterable[str], *, cwd: str, env: Iterable[tuple[str, str]], user: User, mark: str
    ) -> bytes:
        """Run argv as `user` in `cwd`, which is made if need be; then print `mark STATUS` and a newline.

        The mark comes through the same pipe as stdout and stderr, after all that the command printed.
        """

    def shell_command(self, login: str, *, cwd: str, env: Iterable[tuple[str, str]], user: User) -> str:
        """A shell for people, at a terminal or a pipe, where `run_script` would run argv; it ends with its status.

        Unlike scripts it is a command line, for stdin is what is typed: UsageError if `env` is too large for one.
        """

    def pack_files(
        self, src: Iterable[str], *, exclude: Iterable[str], rename: str | None, owner: tuple[int, int]
    ) -> Packing:
        """Pack files of the guest into a tar archive, sparse ones sparse, all owned by the uid and gid `owner`.

        Each goes in under its basename, a root folder and `FOLDER/.` as their contents; a single one is called
        `rename`. What has a name in `exclude` is left out. The script fails, and names it, if one is missing.
        """

    def receive_command(self, login: str, dest: str, user: User) -> str:
        """Unpack a tar stream from stdin in the folder `dest`, owned by `user`."""

    def prepare_scratch(self) -> bytes:
        """Make room for caches."""

    def open_cache(self, slot: int, target: str, user: User) -> bytes:
        """Let an empty folder, owned by `user`, appear at `target`."""

    def close_caches(self, targets: Iterable[str]) -> bytes:
        """Remove every trace of the caches; `targets` are all of them, in order."""

    def prepare_secrets(self) -> bytes:
        """Make room for secrets: in memory, where the OS has a file system there."""

    def receive_secret(self, login: str, slot: int) -> str:
        """Take a secret's value from stdin."""

    def open_secret(self, slot: int, target: str, user: User) -> bytes:
        """Let a secret's file, readable by `user` only, appear at `target`."""

    def close_secrets(self, targets: Iterable[str]) -> bytes:
        """Remove every trace of the secrets; `targets` are all of them, in order."""

    def power_off(self) -> bytes:
        """Power off, for a guest that does not hear the power button."""


@runtime_checkable
class Piping(Common, Protocol):
    """A member whose tar reads and writes caches through SSH's own pipes: the quicker way."""

    def receive_cache(self, login: str, slot: int) -> str:
        """Fill an open cache from the tar archive on stdin."""

    def send_cache(self, slot: int) -> bytes:
        """Write a cache's tar archive, and nothing else, to stdout.

        Called for each, the last first, once the command has ended.
        """


class Copying(Common, Protocol):
    """A member whose pipes do not keep bytes as they are: a cache's archive is a file there, moved by scp."""

    def cache_archive(self, slot: int) -> str:
        """Where scp finds a cache's archive, and puts it."""

    def unpack_cache(self, slot: int) -> bytes:
        """Fill an open cache from its archive, and remove that."""

    def pack_cache(self, slot: int) -> bytes:
        """Make a cache's archive. Called for each, the last first, once the command has ended."""


Guest = Piping | Copying

#: By the `os` of a base image's card.
GUESTS: dict[str, Guest] = {"linux": linux, "freebsd": freebsd, "openbsd": openbsd, "windows": windows}


class Home(Protocol):
    """What a guest is told so that a shell stays in it, whose machine can be frozen and saved."""

    def start(self, mark: str) -> bytes:
        """Start the shell, then print `mark STATUS` and a newline, as `run_script` does.

        If the guest lacks what it needs, the status is LACKING, and before it stands, in a few words, what.
        """


LACKING = linux_agent.LACKING

#: By the `os` of a base image's card: who can be kept warm.
HOMES: dict[str, Home] = {"linux": linux_agent}
