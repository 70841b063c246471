"""The values that a spec is parsed into: a Stage and its ops."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

Op: TypeAlias = "Run | Copy | Env | Workdir | User | Shell | Comment"


class Cache(NamedTuple):
    """A volume that outlives the step, and its mount point."""

    name: str
    target: str
    buildkit_options: tuple[tuple[str, str], ...] = ()


class Secret(NamedTuple):
    """A secret's name, and the file in which the step finds its value."""

    name: str
    target: str
    buildkit_options: tuple[tuple[str, str], ...] = ()


class UnixUser(NamedTuple):
    """A user and a group, by number."""

    uid: int
    gid: int


class WindowsUser(NamedTuple):
    """A user by name."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Placed:
    """An op's position in its file, from 1. It does not count in comparisons.

    The ops share these comparisons: to generate them for each is a good part of the time to load this module.
    """

    line: int = field(default=0, repr=False)
    column: int = field(default=0, repr=False)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def _content(self) -> tuple[object, ...]:
        """All but the position, whose fields are not positional."""
        names: tuple[str, ...] = self.__match_args__
        return tuple(getattr(self, name) for name in names)


@dataclass(frozen=True, slots=True, eq=False)
class Run(_Placed):
    """Run a command."""

    shell: str
    caches: tuple[Cache, ...] = ()
    network: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Copy(_Placed):
    """Copy files from the context or, if `origin` is given, from that build."""

    src: tuple[str, ...]
    dst: str
    exclude: tuple[str, ...] = ()
    origin: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Env(_Placed):
    """Set a variable for the ops that follow."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, eq=False)
class Workdir(_Placed):
    """Change the working folder of the ops that follow."""

    path: str


@dataclass(frozen=True, slots=True, eq=False)
class User(_Placed):
    """Change the user of the ops that follow."""

    user: UnixUser | WindowsUser


@dataclass(frozen=True, slots=True, eq=False)
class Shell(_Placed):
    """Change the shell that runs the commands of the ops that follow."""

    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Comment(_Placed):
    """A comment, which does nothing."""

    text: str


class Stage(NamedTuple):
    """A base image and the ops on it. `stages` are the builds that its copies may refer to, in order."""

    base: str
    ops: tuple[Op, ...] = ()
    stages: tuple[tuple[str, Stage], ...] = ()
