"""`scp:[USER@]HOST:PATH`: a file on another computer, sent by OpenSSH's sftp as the user has configured SSH.

The file is sent under a hidden name that has its digest, and renamed when it is complete: so an interrupted upload
goes on, and never with something else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from obuild.errors import ObuildError, ProcessError, UsageError
from obuild.exports.targets.target import Image, Published, Settings, file_type_of, stem_of
from obuild.guests.profile import Card
from obuild.host import process

#: The variable that names another configuration of SSH than ~/.ssh/config.
CONFIG = "OBUILD_SSH_CONFIG"

# sftp expands patterns and quotes in names: those that need it are refused.
_PLACE = re.compile(
    r"((?:[\w.+-]+@)?[A-Za-z0-9_][\w.-]*|(?:[\w.+-]+@)?\[[0-9A-Fa-f:.]+\]):([^\x00-\x1f*?\[\]\"'\\]+)"
)


class Scp:
    """A file on another computer."""

    def __init__(self, place: str, settings: Settings) -> None:
        found = _PLACE.fullmatch(place)
        if not found or found[2].endswith("/"):
            hint = "write it like scp:user@host.example:images/pg16.qcow2, without any of * ? [ ] \" ' \\"
            raise UsageError(f"scp:{place} does not name a file on another computer", hint=hint)
        self._host, self._path = str(found[1]), str(found[2])
        self._folder, _, self._name = self._path.rpartition("/")
        if self._path.startswith("/"):
            self._folder = self._folder or "/"
        self._shown = f"scp:{place}"
        self._settings = settings
        self.type = file_type_of(self._name, settings)
        self.stem = stem_of(self._name, self.type)

    def check(self, cards: Sequence[Card]) -> None:
        """ObuildError if we cannot log in, or the folder is missing; UsageError if the file exists."""
        self._run(f'cd "{self._folder or "."}"')
        if self._size(self._path) is not None and not self._settings.replace:
            raise UsageError(f"{self._shown} exists already", hint="--replace replaces it")

    def send(self, images: Sequence[Image]) -> list[Published]:
        (image,) = images
        size = image.path.stat().st_size
        part = f"{f'{self._folder}/' if self._folder else ''}.{self._name}.{image.sha256[:16]}.part"
        there = self._size(part)
        resumed = "-a" if there and there < size else ""
        put = "" if there == size else f'put -f {resumed} {image.path.name} "{part}"\n'
        self._run(f'{put}rename "{part}" "{self._path}"', cwd=image.path.parent)
        if self._size(self._path) != size:
            raise ObuildError(f"{self._shown} is not what was sent", hint="publish it again with --replace")
        return [Published(self._shown, f"{self._host}:{self._path}", f"sha256:{image.sha256}", size)]

    def _size(self, path: str) -> int | None:
        """The size of a file there, in bytes; None if there is none."""
        told = self._run(f'-ls -ln "{path}"').decode(errors="replace")
        lines = [line.split() for line in told.splitlines() if line.startswith("-")]
        return int(lines[0][4]) if lines else None

    def _run(self, commands: str, *, cwd: Path | None = None) -> bytes:
        """Run commands of sftp. Nobody is asked for a password: keys and agents are SSH's own business."""
        config = self._settings.environment.get(CONFIG)
        argv = [
            *("sftp", "-q", "-b", "-"),
            *(("-F", config) if config else ()),
            *("-o", "ConnectTimeout=30"),
            *("-o", "ServerAliveInterval=15"),  # else a dead connection is noticed only by TCP
            *("--", self._host),
        ]
        try:
            return process.run(argv, input=f"{commands}\n".encode(), cwd=cwd)
        except ProcessError as error:
            said = [line for line in error.message.splitlines()[1:] if line.strip()] or [error.message]
            hint = "`sftp` must get there without a password: by a key, an agent or ~/.ssh/config"
            raise ObuildError(f"{self._shown}: {said[-1]}", hint=hint) from error
