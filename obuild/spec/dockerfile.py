"""Convert a Stage to a Dockerfile, byte for byte as OBuilder does.

What a Dockerfile cannot express is left out, as in OBuilder: `exclude`, `network` and, without BuildKit,
caches and secrets. Words are not quoted, since Docker's quoting rules differ from place to place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from obuild.spec.ops import (
    Cache,
    Comment,
    Copy,
    Env,
    Op,
    Run,
    Secret,
    Shell,
    Stage,
    UnixUser,
    User,
    WindowsUser,
    Workdir,
)

Escape = Literal["unix", "windows"]

_ESCAPES = {"unix": "\\", "windows": "`"}
_ROOTS: dict[str, UnixUser | WindowsUser] = {
    "unix": UnixUser(0, 0),
    "windows": WindowsUser("ContainerAdministrator"),
}
#: The characters that OCaml's String.trim removes.
_BLANK = " \t\n\f\r"


def dockerfile(stage: Stage, *, buildkit: bool, escape: Escape) -> str:
    """The Dockerfile for `stage`; every line ends in a newline.

    `escape` selects the line continuation character and the initial user. OBuilder crashes on a BuildKit
    mount for a user without a uid; here the mount is written without one.
    """
    writer = _Writer(buildkit, _ESCAPES[escape], _ROOTS[escape])
    head = "#escape=`\n" if escape == "windows" else ""
    return head + "".join(f"{line}\n" for line in writer.stage(stage, None))


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes a stage's ops; `user` is the current user."""

    buildkit: bool
    escape: str
    user: UnixUser | WindowsUser

    def stage(self, stage: Stage, name: str | None) -> Iterator[str]:
        for child_name, child in stage.stages:
            yield from self.stage(child, child_name)
            yield ""
        yield f"FROM {stage.base}" + ("" if name is None else f" as {name}")
        writer = self
        for op in stage.ops:
            if isinstance(op, User):
                writer = replace(writer, user=op.user)
            yield writer.op(op)

    def op(self, op: Op) -> str:
        match op:
            case Run():
                return self.run(op)
            case Copy():
                return self.copy(op)
            case Env(name, value):
                return f'ENV {name}="{self.quote(value)}"'
            case Workdir(path):
                return f"WORKDIR {path}"
            case User(user):
                return f"USER {user.name if isinstance(user, WindowsUser) else _ids(user)}"
            case Shell(argv):
                words = ", ".join(f'"{word}"' for word in argv)
                return f"SHELL [ {words} ]"
            case Comment(text):
                return f"# {text}"

    def run(self, run: Run) -> str:
        mounts: tuple[Cache | Secret, ...] = (*run.secrets, *run.caches) if self.buildkit else ()
        wrap = f" {self.escape}\n    "
        command = wrap.join(line.strip(_BLANK) for line in run.shell.split("\n"))
        return f"RUN {''.join(map(self.mount, mounts))}{command}"

    def mount(self, mount: Cache | Secret) -> str:
        kind = "cache" if isinstance(mount, Cache) else "secret"
        owner = (("uid", str(self.user.uid)),) if isinstance(self.user, UnixUser) else ()
        options = (("id", mount.name), ("target", mount.target), *owner, *mount.buildkit_options)
        return f"--mount=type={kind}{''.join(f',{key}={value}' for key, value in options)} "

    def copy(self, copy: Copy) -> str:
        user = self.user
        owner = ""
        if isinstance(user, UnixUser) and user not in _ROOTS.values():
            owner = f"--chown={_ids(user)} "
        origin = "" if copy.origin is None else f"--from={copy.origin} "
        return f"COPY {owner}{origin}{' '.join(copy.src)} {copy.dst}"

    def quote(self, text: str) -> str:
        return "".join(self.escape + char if char in ('"', self.escape) else char for char in text)


def _ids(user: UnixUser) -> str:
    return f"{user.uid}:{user.gid}"
