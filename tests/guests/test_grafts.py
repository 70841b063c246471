"""Files from a build on each OS to a step on each other, over real SSH. The server acts as the guests."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from obuild.errors import MachineError
from obuild.executors.qemu.session import Session
from obuild.guests import rules, windows
from obuild.guests.profile import OSES
from obuild.plan import tree
from obuild.plan.archive import manifest_of
from obuild.plan.keys import LayerId
from obuild.plan.steps import Extract, Graft
from obuild.spec import UnixUser, WindowsUser
from tests.support.guests import Windows, key, mounting, place, read_back, session
from tests.support.ssh_server import Unix, bsd_programs, unquoted

__all__ = ["key", "place"]

USERS = {"windows": WindowsUser("ContainerAdministrator"), "freebsd": WindowsUser("daemon")}
MANY = "many" * 40


class Packing(Windows):
    """The model, with a tar.exe that packs: its command line is parsed as on Windows."""

    def script(self, text: str, stdout: IO[bytes]) -> int:
        if found := re.fullmatch(r"\[IO\.Directory\]::Delete\(('.*'),\$true\)\n", text):
            shutil.rmtree(self.path(unquoted(found[1])))
            return 0
        if found := re.search(r"^\$a=('.*')$", text, re.MULTILINE):
            return self.pack(text, read_back(unquoted(found[1])), stdout)
        return super().script(text, stdout)

    def pack(self, text: str, words: list[str], stdout: IO[bytes]) -> int:
        self.path(windows.TAKEN).mkdir()
        for at, word in enumerate(words):
            if word in ("-f", "-C"):
                words[at + 1] = str(self.path(words[at + 1]))
        named = dict(re.findall(r"^\$([dft])=('.*')$", text, re.MULTILINE))
        aside, old, new = (self.path(unquoted(named[name])) if named else None for name in "dft")
        if aside and old and new:
            aside.mkdir()
            old.rename(new)
        env = {**os.environ, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            ["bsdtar", *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        stdout.write(done.stdout)
        if aside and old and new:
            new.rename(old)
            aside.rmdir()
        return done.returncode


@pytest.fixture
def guests(place: Path, key: Path) -> Iterator[dict[str, Session]]:
    """A guest of each OS. The Unix ones are all this host; the folder `place` is their root, and Windows' C:."""
    programs = bsd_programs(place / "programs")
    (place / "none").mkdir()
    with ExitStack() as stack:
        opened = {}
        for name in ("linux", "freebsd", "openbsd"):
            guest = Unix(place / "none" if name == "linux" else programs)
            stack.callback(guest.close)
            opened[name] = stack.enter_context(session(name, guest, key))
        opened["windows"] = stack.enter_context(session("windows", Packing(place), key))
        yield opened


def source_files(folder: Path) -> None:
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "sub" / "é [x]").write_text("text")
    (folder / "one").write_text("one")
    (folder / "one").chmod(0o4750)
    (folder / "again").hardlink_to(folder / "one")
    (folder / "sub" / "link").symlink_to("../nowhere")
    (folder / MANY).write_text(MANY)
    (folder / "sub" / "skip.o").touch()
    (folder / "skip.o.not").touch()
    with (folder / "sparse").open("wb") as file:
        file.seek(50 << 20)
        file.write(b"end")


def path_in(os: str, place: Path, path: str) -> str:
    return f"C:/{path}" if os == "windows" else f"{place}/{path}"


@mounting
@pytest.mark.parametrize("origin", OSES)
def test_files_go_from_one_system_to_each_other(
    origin: str, guests: dict[str, Session], place: Path, tmp_path: Path
) -> None:
    source_files(place / "out")
    expected = tree.walk(place, ["out"], exclude=["skip.o"])
    assert not any("skip.o" in entry.path.split("/") for entry in expected.entries)
    for target in OSES:
        before = sorted(place.iterdir())
        user = USERS.get(target, UnixUser(12345, 23456))
        src = (path_in(origin, place, "out"),)
        extract = Extract("dev", src, ("skip.o",), None, user)
        guests[origin].take(extract, tmp_path / "files.tar")
        assert sorted(place.iterdir()) == before, "no trace"
        manifest = manifest_of(tmp_path / "files.tar", pax=origin in rules.PAX)
        assert sorted(entry[1] for entry in manifest) == sorted(entry.path for entry in expected.entries)
        if origin != "windows":
            assert manifest == expected.manifest
        dest = f"to {target}"
        graft = Graft(extract, LayerId("f" * 64), manifest, path_in(target, place, dest))
        guests[target].graft(graft, tmp_path / "files.tar")
        assert tree.walk(place / dest, ["out"]).manifest == expected.manifest
        assert (place / dest / "out" / "sparse").stat().st_blocks * 512 < 1 << 20
        if target != "windows":
            uid = pwd.getpwnam("daemon").pw_uid if target == "freebsd" else 12345
            assert {path.lstat().st_uid for path in (place / dest).rglob("*")} == {uid}


@mounting
@pytest.mark.parametrize("origin", ["linux", "freebsd", "openbsd"])
def test_a_name_that_is_not_utf_8_keeps_its_bytes(
    origin: str, guests: dict[str, Session], place: Path, tmp_path: Path
) -> None:
    (place / "out").mkdir()
    for name in (os.fsdecode(b"\xff"), os.fsdecode(b"\xff") * 120, "two\nlines", "é" * 60):
        (place / "out" / name).symlink_to(name)
    extract = Extract("dev", (f"{place}/out",), (), None, UnixUser(0, 0))
    guests[origin].take(extract, tmp_path / "files.tar")
    expected = tree.walk(place, ["out"]).manifest
    assert manifest_of(tmp_path / "files.tar", pax=origin in rules.PAX) == expected
    for target in ("linux", "freebsd", "openbsd"):
        graft = Graft(extract, LayerId("f" * 64), (), f"{place}/to {target}")
        guests[target].graft(graft, tmp_path / "files.tar")
        assert tree.walk(place / f"to {target}", ["out"]).manifest == expected


@mounting
@pytest.mark.parametrize("origin", OSES)
def test_several_files_and_a_new_name(
    origin: str, guests: dict[str, Session], place: Path, tmp_path: Path
) -> None:
    source_files(place / "out")

    def taken(*src: str, rename: str | None = None) -> tree.Manifest:
        paths = tuple(path_in(origin, place, path) for path in src)
        guests[origin].take(Extract("dev", paths, (), rename, UnixUser(0, 0)), tmp_path / "files.tar")
        return manifest_of(tmp_path / "files.tar", pax=origin in rules.PAX)

    def names(found: tree.Manifest) -> list[str]:
        return sorted(path for _, path, *_ in found)

    assert names(taken("out/one", "out/sub/link", "out/sub/empty")) == ["empty", "link", "one"]
    one = taken("out/one", rename="new name")
    assert one == tree.walk(place, ["out/one"], rename="new name").manifest
    assert taken("out/one", rename="one") == tree.walk(place, ["out/one"]).manifest
    assert taken("out/sub/link", rename="new") == (("symlink", "new", "777", "../nowhere"),)
    whole = tree.walk(place, ["out"], rename="new").entries
    for src in ("out", "out/."):
        assert names(taken(src, rename="new")) == sorted(entry.path for entry in whole)
    inside = [path.removeprefix("new/") for path in sorted(entry.path for entry in whole)]
    assert names(taken("out/.")) == sorted([".", *inside[1:]])
    assert not (place / "out" / windows.ASIDE).exists()


@mounting
@pytest.mark.parametrize("origin", OSES)
def test_a_missing_source_is_an_error(
    origin: str, guests: dict[str, Session], place: Path, tmp_path: Path
) -> None:
    paths = (path_in(origin, place, "nosuch"),)
    with pytest.raises(MachineError, match="copying from the build dev failed"):
        guests[origin].take(Extract("dev", paths, (), None, UnixUser(0, 0)), tmp_path / "files.tar")
