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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """An op's position in its file, from 1. It does not count in comparisons."""

    line: int = field(default=0, compare=False, repr=False)
    column: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Run(_Placed):
    """Run a command."""

    shell: str
    caches: tuple[Cache, ...] = ()
    network: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()


@dataclass(frozen=True, slots=True)
class Copy(_Placed):
    """Copy files from the context or, if `origin` is given, from that build."""

    src: tuple[str, ...]
    dst: str
    exclude: tuple[str, ...] = ()
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Env(_Placed):
    """Set a variable for the ops that follow."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Workdir(_Placed):
    """Change the working folder of the ops that follow."""

    path: str


@dataclass(frozen=True, slots=True)
class User(_Placed):
    """Change the user of the ops that follow."""

    user: UnixUser | WindowsUser


@dataclass(frozen=True, slots=True)
class Shell(_Placed):
    """Change the shell that runs the commands of the ops that follow."""

    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comment(_Placed):
    """A comment, which does nothing."""

    text: str


class Stage(NamedTuple):
    """A base image and the ops on it. `stages` are the builds that its copies may refer to, in order."""

    base: str
    ops: tuple[Op, ...] = ()
    stages: tuple[tuple[str, Stage], ...] = ()
