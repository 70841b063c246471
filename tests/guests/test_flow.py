"""A whole step on each OS, over real SSH: caches, secrets, a command, a tree; the server plays the guest."""

from __future__ import annotations

import base64
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, cast

import pytest

from obuild.errors import MachineError, StoreError
from obuild.executors.qemu import ssh
from obuild.executors.qemu.config import Config
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.session import Session
from obuild.executors.qemu.shape import Shape
from obuild.guests import freebsd, linux, openbsd, windows
from obuild.guests.all import GUESTS
from obuild.plan import tree
from obuild.plan.steps import Chain, Command, Transfer
from obuild.spec import Cache, Secret, UnixUser, WindowsUser
from obuild.store.caches import CacheCopy
from obuild.store.layers import Store
from tests.guests.test_linux import can_mount
from tests.support.fakes import FakeMachine
from tests.support.ssh_server import Handler, Unix, bsd_programs, pipe, serve, unquoted

UNIX = {"linux": linux, "freebsd": freebsd, "openbsd": openbsd}

missing = [program for program in ("bsdtar", "nsenter", "setpriv", "perl") if not shutil.which(program)]
mounting = pytest.mark.skipif(not can_mount() or bool(missing), reason="needs to be root, and mount namespaces")
like_windows = pytest.mark.skipif(
    not shutil.which("bsdtar") or not shutil.which("scp"), reason="needs scp, and bsdtar, the tar of Windows"
)


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
    """A step's copy of a cache that lives in `folder`."""
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


def source_tree(folder: Path) -> tree.Tree:
    (folder / "source" / "sub").mkdir(parents=True)
    (folder / "source" / "sub" / "é").write_text("text")
    return tree.walk(folder / "source", ["."])


@mounting
@pytest.mark.parametrize("os", UNIX)
def test_a_step_on_a_unix(
    os: str, place: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: ModuleType = UNIX[os]
    programs = bsd_programs(place / "programs")
    if os == "linux":
        shutil.rmtree(programs)
    monkeypatch.setattr(module, "DEFAULT_PATH", f"{programs}:{module.DEFAULT_PATH}")
    monkeypatch.setattr(module, "SCRATCH", f"{place}/scratch")
    monkeypatch.setattr(module, "SECRETS", f"{place}/secrets")
    cache, secret = place / "c d", place / "run" / "secret"
    text = f"id -u; pwd; cat {secret}; echo $A; echo more >>'{cache}/lines'; cat '{cache}/lines'; exit 7"
    command = Command(
        argv=("sh", "-c", text),
        cwd=f"{place}/it's",
        env=(("A", "1  2"),),
        user=UnixUser(12345, 23456),
        network=False,
        caches=(Cache("c", str(cache)), Cache("d", f"{cache}/inner")),
        secrets=(Secret("s", str(secret)),),
    )
    guest = Unix(programs)
    outputs = []
    try:
        with session(os, guest, key) as opened:
            opened.send(Transfer(source_tree(tmp_path), f"{place}/dest", UnixUser(12345, 23456)))
            for _ in range(2):
                output = bytearray()
                copies = [taken(tmp_path, "c"), taken(tmp_path, "d")]
                assert run(opened, command, copies, {"s": b"value\n"}, output) == 7
                outputs.append(output.decode())
            with pytest.raises(MachineError, match="copying to"):
                opened.send(Transfer(source_tree(place), f"{place}/dest/sub/é/below", UnixUser(0, 0)))
    finally:
        guest.close()
    head = f"12345\n{place}/it's\nvalue\n1 2\n"
    assert outputs == [head + "more\n", head + "more\nmore\n"]
    assert (place / "dest" / "sub" / "é").read_text() == "text"
    assert (place / "dest" / "sub" / "é").stat().st_uid == 12345
    assert {path.name for path in place.iterdir()} - {"programs", "source"} == {"c d", "dest", "it's"}
    assert [str(path.relative_to(cache)) for path in cache.rglob("*")] in ([], ["inner"])
    assert not any("value" in text for text in guest.seen)


def cached(cache: Path | str, text: str) -> Command:
    """A step of root's that has one cache."""
    return Command(
        argv=("sh", "-c", text),
        cwd="/",
        env=(),
        user=UnixUser(0, 0),
        network=False,
        caches=(Cache("c", str(cache)),),
    )


#: Makes in the current folder what tar has a way of its own for.
ODD_FILES = f"""set -e
    echo x >a; chown 7:8 a; chmod 4711 a; ln a hard; ln -s a link; ln -s {"long/" * 50} far; mkfifo fifo
    truncate -s 10M sparse; printf end >>sparse; mkdir -m 1777 dir; mkdir -p {"d" * 120}/{"e" * 120}
    echo y >{"d" * 120}/{"e" * 120}/{"f" * 200}; touch "$(printf 'b\\377\n')" -- -C
    touch -d @1000000000 dir .; chown 9:10 ."""

#: How the folder $PWD was packed into the file $OUT as long as scp carried it.
PACKED = {
    "linux": "tar --create --file=$OUT --format=gnu --sort=name --numeric-owner --sparse .",
    "freebsd": "find . -print0 | LC_ALL=C sort -z | "
    "tar -c -f $OUT --format gnutar --numeric-owner --no-recursion --null -T -",
    "openbsd": "gtar --create --file=$OUT --format=gnu --sort=name --numeric-owner --sparse .",
}


@mounting
@pytest.mark.parametrize("login", ["root", "opam"])
@pytest.mark.parametrize("os", UNIX)
def test_a_cache_is_stored_as_scp_carried_it(
    os: str, login: str, place: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte; only FreeBSD's tar pads what it writes to a pipe. What is the same is not written again."""
    module: ModuleType = UNIX[os]
    programs = bsd_programs(place / "programs")
    if os == "linux":
        (programs / "tar").unlink()
    monkeypatch.setattr(module, "DEFAULT_PATH", f"{programs}:{module.DEFAULT_PATH}")
    monkeypatch.setattr(module, "SCRATCH", f"{place}/scratch")
    cache, stored = place / "cache", tmp_path / "c" / "master" / "cache.tar"
    pack = f"cd {cache}; export LC_ALL=C; OUT={place}"
    guest = Unix(programs)
    try:
        with session(os, guest, key, login) as opened:
            first = f"cd {cache}; {ODD_FILES}; {pack}/first.tar; {PACKED[os]}"
            assert run(opened, cached(cache, first), [taken(tmp_path, "c")], {}, bytearray()) == 0
            data, inode = stored.read_bytes(), stored.stat().st_ino
            again = f"{pack}/again.tar; {PACKED[os]}"
            assert run(opened, cached(cache, again), [taken(tmp_path, "c")], {}, bytearray()) == 0
    finally:
        guest.close()
    by_scp = (place / "first.tar").read_bytes()
    padding = len(data) - len(by_scp)
    assert 0 <= padding < (tarfile.RECORDSIZE if os == "freebsd" else 1)
    assert data == by_scp + bytes(padding)
    assert (place / "again.tar").read_bytes() == by_scp
    assert (stored.read_bytes(), stored.stat().st_ino) == (data, inode)
    with tarfile.open(stored) as archive:
        names = set(archive.getnames())
    assert names > {".", "./a", "./hard", "./far", "./sparse", "./dir", "./fifo"}
    assert any(len(name) > 440 for name in names)


def guest_that(sends: Callable[[IO[bytes]], int]) -> Handler:
    """A guest that does nothing but send a cache's archive, in its own way."""

    def handler(command: str, stdin: IO[bytes], stdout: IO[bytes]) -> int:
        script = stdin.read()
        if b"exec 2>&1" in script:
            mark = re.search(rb"obuild-[0-9a-f]{32}", script)
            assert mark
            stdout.write(mark[0] + b" 0\n")
        return sends(stdout) if b"--create" in script else 0

    return handler


def fails(stdout: IO[bytes]) -> int:
    stdout.write(bytes(100_000))
    stdout.channel.sendall_stderr(b"tar: it broke\n")  # type: ignore[attr-defined]  # paramiko's own file
    return 2


def hangs_up(stdout: IO[bytes]) -> int:
    stdout.write(bytes(100_000))
    stdout.channel.get_transport().close()  # type: ignore[attr-defined]  # paramiko's own file
    return 0


@pytest.mark.parametrize(
    ("sends", "said"),
    [
        (fails, "^packing cache c failed in the guest: tar: it broke$"),
        (hangs_up, "the guest closed the SSH connection"),
    ],
)
def test_a_cache_that_does_not_arrive_whole_leaves_the_old_one(
    sends: Callable[[IO[bytes]], int], said: str, key: Path, tmp_path: Path
) -> None:
    stored = tmp_path / "c" / "master" / "cache.tar"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"as it was")
    with session("linux", guest_that(sends), key) as opened, pytest.raises(MachineError, match=said):
        run(opened, cached("/c", "true"), [taken(tmp_path, "c")], {}, bytearray())
    assert stored.read_bytes() == b"as it was"


def test_a_cache_that_fills_the_hosts_disk_is_told_as_one(
    key: Path, store: Store, chain: Callable[[str], Chain]
) -> None:
    def sends(stdout: IO[bytes]) -> int:
        stdout.write(bytes(1 << 20))
        return 0

    full = r"cannot write to the store .*: No space left on device"
    with session("linux", guest_that(sends), key) as opened, store.caches.borrow("c") as copy:
        copy.path.with_suffix(".new").symlink_to("/dev/full")
        with pytest.raises(StoreError, match=full), store.draft(chain("").steps[0]):
            run(opened, cached("/c", "true"), [copy], {}, bytearray())
    assert store.caches.archives() == {}


class Windows:
    """A small model of a Windows guest: a folder for C:, junctions are symlinks, and it knows each script's verb.

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


@like_windows
def test_a_step_on_windows(key: Path, tmp_path: Path) -> None:
    user = WindowsUser("ContainerAdministrator")
    command = Command(
        argv=(r"C:\Windows\System32\cmd.exe", "/S", "/C", 'type "C:\\run\\secret" & exit 7'),
        cwd="C:/it's",
        env=(("A", "1  2"),),
        user=user,
        network=False,
        caches=(Cache("c", "C:/c d"), Cache("d", "C:/c d/inner")),
        secrets=(Secret("s", "C:/run/secret"),),
    )
    (tmp_path / "C").mkdir()
    guest = Windows(tmp_path / "C")
    outputs = []
    with session("windows", guest, key, "Administrator") as opened:
        opened.send(Transfer(source_tree(tmp_path), "C:/dest", user))
        for _ in range(2):
            output = bytearray()
            copies = [taken(tmp_path, "c"), taken(tmp_path, "d")]
            assert run(opened, command, copies, {"s": b"value\n"}, output) == 7
            outputs.append(output.decode())
    assert outputs == ["value\nmore\n", "value\nmore\nmore\n"]
    assert guest.ran[0] == {
        "d": r"C:\it's",
        "i.FileName": r"C:\Windows\System32\cmd.exe",
        "i.Arguments": '/S /C "type "C:\\run\\secret" & exit 7"',
        "e['A']": "1  2",
    }
    root = tmp_path / "C"
    assert (root / "dest" / "sub" / "é").read_text() == "text"
    assert {path.name for path in root.iterdir()} == {"c d", "dest", "it's"}
    assert list((root / "c d").iterdir()) == []
