"""Run the guests' scripts on this host, with its shells and tools."""

from __future__ import annotations

import base64
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import pytest

from obuild.executors.qemu import ssh
from obuild.executors.qemu.config import Config
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.session import Session
from obuild.executors.qemu.shape import Shape
from obuild.guests import windows
from obuild.guests.all import GUESTS
from obuild.plan.steps import Command
from obuild.store.caches import CacheCopy
from tests.support.fakes import FakeMachine
from tests.support.ssh_server import Handler, pipe, serve, unquoted


def can_mount() -> bool:
    argv = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return os.getuid() == 0 and subprocess.run(argv, check=False, capture_output=True).returncode == 0


def typed_at(command: str) -> list[str]:
    """The lines of the script in a `shell_command`."""
    sh, option, reader, text = shlex.split(command.removeprefix("exec ").removeprefix("sudo -n "))
    assert (sh, option, reader) == ("sh", "-c", 'eval "$(printf %b "$0")"')
    return re.sub(r"\\0([0-7]{3})", lambda found: chr(int(found[1], 8)), text).splitlines()


#: The last line of the script on every Unix.
BASH_OR_SH = "/bin/sh -c 'command -v bash >/dev/null 2>&1 && exec bash; exec /bin/sh'"


missing = [program for program in ("bsdtar", "nsenter", "setpriv", "perl") if not shutil.which(program)]


mounting = pytest.mark.skipif(not can_mount() or bool(missing), reason="needs to be root, and mount namespaces")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that any user can enter."""
    with tempfile.TemporaryDirectory(prefix="obuild-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    ssh.make_key(tmp_path / "key")
    return tmp_path / "key"


@contextmanager
def session(os: str, handler: Handler, key: Path, login: str = "root") -> Iterator[Session]:
    with serve(handler) as port:
        machine = cast(Machine, FakeMachine(port, Shape()))
        with ssh.connect(machine, login=login, key=key) as connection:
            yield Session(Config(Shape(), login, key, GUESTS[os]), machine, connection, login)


def taken(folder: Path, name: str) -> CacheCopy:
    """A step's copy of a cache in `folder`."""
    (folder / name).mkdir(exist_ok=True)
    copy = CacheCopy(
        name, folder / name / "copy.tar", folder / name / "master" / "cache.tar", folder / name / "lock"
    )
    copy.path.unlink(missing_ok=True)
    copy.take()
    return copy


def run(
    opened: Session, command: Command, copies: list[CacheCopy], secrets: dict[str, bytes], output: bytearray
) -> int:
    """Run a command as a build does, and return its exit status."""
    outcome = opened.run(command, [copy.path for copy in copies], secrets, output.extend)
    for copy, archive in zip(copies, outcome.caches, strict=True):
        copy.save(archive)
    return outcome.status


class Windows:
    """A small model of a Windows guest: a folder is C:, junctions are symlinks, and each script is recognized.

    What a step's command does is `act`, given the command line of the program, its workdir and environment.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: list[str] = []
        self.ran: list[dict[str, str]] = []

    def path(self, name: str) -> Path:
        assert name.startswith("C:\\"), name
        return self.root.joinpath(*name[3:].split("\\"))

    def __call__(self, command: str, stdin: IO[bytes], stdout: IO[bytes]) -> int:
        self.seen.append(command)
        if found := re.fullmatch(r"scp (-\w) C:/(\S+)", command):
            return pipe(["scp", found[1], str(self.root / found[2])], stdin, stdout)
        words = shlex.split(command)
        assert words[:4] == ["cmd", "/D", "/S", "/C"], command
        script = base64.b64decode(words[4].split()[-2]).decode("utf-16-le")
        if "ScriptBlock" in script:
            return self.script(stdin.read().decode("utf-8"), stdout)
        if found := re.search(r"\$d=('.*?');.*tar\.exe\" -x -P -f - --options 'hdrcharset=UTF-8'", script):
            dest = self.path(unquoted(found[1]))
            dest.mkdir(parents=True, exist_ok=True)
            return pipe(
                ["bsdtar", "-x", "-P", "-f", "-", "--options", "hdrcharset=UTF-8"], stdin, stdout, cwd=dest
            )
        found = re.search(r"Open\(('.*?'),'Create'", script)
        assert found, script
        self.path(unquoted(found[1])).write_bytes(stdin.read())
        return 0

    def script(self, text: str, stdout: IO[bytes]) -> int:
        lines = text.splitlines()
        if "$p=[Diagnostics.Process]::Start($i)" in lines:
            return self.start(text, stdout)
        if found := re.search(r"CreateDirectory\(('[^']*')\)\Z", text.strip()):
            self.path(unquoted(found[1])).mkdir()
            return 0
        target = re.search(r"^\$t=('.*')$", text, re.MULTILINE)
        if (found := re.search(r"Junction -Path \$t -Value ('.*')\)", text)) and target:
            folder, path = self.path(unquoted(found[1])), self.path(unquoted(target[1]))
            path.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            path.rename(f"{path}.obuild-{folder.name}")
            folder.with_suffix(".target").write_text(unquoted(target[1]))
            path.symlink_to(folder)
            return 0
        if "-Filter *.target" in text:
            self.put_back()
        if found := re.search(r"tar\.exe\" (-[xc]) -f ('.*?') -C ('.*?')( \.)?$", text, re.MULTILINE):
            archive, folder = self.path(unquoted(found[2])), self.path(unquoted(found[3]))
            status = subprocess.run(["bsdtar", found[1], "-f", archive, "-C", folder, *(found[4] or "").split()])
            if "[IO.File]::Delete('" in text:
                archive.unlink()
            return status.returncode
        if found := re.search(r"rd /S /Q (\S+)$", text, re.MULTILINE):
            shutil.rmtree(self.path(found[1]))
            return 0
        if "icacls" in text:
            self.path(windows.SECRETS).mkdir()
            return 0
        if (found := re.search(r"Move\(('.*'),\$t\)$", text)) and target:
            self.open_secret(self.path(unquoted(found[1])), self.path(unquoted(target[1])))
            return 0
        assert "function wipe" in text, text
        for name in re.findall(r"^\$t=('.*')$", text, re.MULTILINE):
            path = self.path(unquoted(name))
            path.unlink()
            path.parent.rmdir()
        shutil.rmtree(self.path(windows.SECRETS))
        return 0

    def put_back(self) -> None:
        notes = self.path(windows.SCRATCH).glob("*.target")
        for note in sorted(notes, key=lambda note: int(note.stem), reverse=True):
            path = self.path(note.read_text())
            path.unlink()
            Path(f"{path}.obuild-{note.stem}").rename(path)
            note.unlink()

    def open_secret(self, file: Path, path: Path) -> None:
        path.parent.mkdir()
        file.rename(path)

    def start(self, text: str, stdout: IO[bytes]) -> int:
        values = dict(re.findall(r"^\$(d|i\.\w+|e\['\w+'\])=('.*')$", text, re.MULTILINE))
        step = {name: unquoted(value) for name, value in values.items()}
        self.ran.append(step)
        self.path(step["d"]).mkdir(parents=True, exist_ok=True)
        lines = self.path(r"C:\c d\lines")
        lines.write_text((lines.read_text() if lines.exists() else "") + "more\n")
        stdout.write(self.path(r"C:\run\secret").read_bytes() + lines.read_bytes())
        mark = re.search(r"GetBytes\(('.*?')\+", text)
        assert mark
        stdout.write(f"{unquoted(mark[1])} 7\n".encode())
        return 0


def read_back(line: str) -> list[str]:
    """The rules of Microsoft's C runtime, implemented independently from its manual."""
    words: list[str] = []
    at = 0
    while at < len(line):
        if line[at] in " \t":
            at += 1
            continue
        word, quoted = "", False
        while at < len(line) and (quoted or line[at] not in " \t"):
            slashes = len(line) - at - len(line[at:].lstrip("\\"))
            at += slashes
            if line[at : at + 1] == '"':
                word += "\\" * (slashes // 2)
                if slashes % 2:
                    word += '"'
                else:
                    quoted = not quoted
                at += 1
            elif slashes:
                word += "\\" * slashes
            else:
                word += line[at]
                at += 1
        words.append(word)
    return words
