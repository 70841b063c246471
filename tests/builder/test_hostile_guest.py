"""A compromised guest: what it sends is only bytes in the file where they belong, or one error."""

# ruff: noqa: PT017  # some tests check the error in the except clause
from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

from obuild.errors import MachineError, ObuildError
from obuild.guests import linux
from obuild.guests.tar import by_gnu_tar
from obuild.plan import tree
from obuild.plan.archive import manifest_of
from obuild.plan.steps import Command
from obuild.spec import Cache, UnixUser
from tests.support.archives import seen, tricks
from tests.support.guests import key, mounting, run, session, taken
from tests.support.ssh_server import Unix

__all__ = ["key"]  # a fixture


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that any user can enter. All that a guest could harm in these tests is `place/outside`."""
    with tempfile.TemporaryDirectory(prefix="obuild-test-") as name:
        Path(name).chmod(0o755)
        (Path(name) / "outside").mkdir()
        (Path(name) / "outside" / "there").write_text("as it was")
        yield Path(name)


TRICKS = sorted(tricks(Path("/x")))


def a_step(place: Path, text: str) -> Command:
    return Command(
        argv=("sh", "-c", text),
        cwd="/",
        env=(),
        user=UnixUser(0, 0),
        network=False,
        caches=(Cache("c", f"{place}/cache"),),
    )


@mounting
@pytest.mark.parametrize("trick", TRICKS)
def test_a_cache_from_a_guest_is_only_bytes_in_one_file(
    trick: str, place: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest's tar packs something unexpected; the host stores it and interprets nothing."""
    monkeypatch.setattr(linux, "SCRATCH", f"{place}/scratch")
    data = tricks(tmp_path / "outside")[trick]
    (place / "data").write_bytes(data)
    (place / "programs").mkdir()
    real = shutil.which("tar")
    (place / "programs" / "tar").write_text(
        f"""#!/bin/sh
        for word; do case $word in --create) create=1 ;; --file=*) file=${{word#--file=}} ;; esac; done
        [ "$create" ] || exec {real} "$@"
        case $file in -) cat {place}/data ;; *) cat {place}/data >"$file" ;; esac"""
    )
    (place / "programs" / "tar").chmod(0o755)
    (tmp_path / "outside").mkdir()
    copy = taken(tmp_path, "c")
    before = seen(tmp_path)
    guest = Unix(place / "programs")
    try:
        with session("linux", guest, key) as opened:
            assert run(opened, a_step(place, "true"), [copy], {}, bytearray()) == 0
    finally:
        guest.close()
    after = seen(tmp_path)
    master = tmp_path / "c" / "master" / "cache.tar"
    assert after.pop(str(master)) == data
    assert master.stat().st_mode & 0o7133 == 0, "nobody but us may write to it, and nobody run it"
    assert {path: content for path, content in after.items() if path not in before} == {str(master.parent): b""}
    assert {path: after.get(path) for path in before} == before


@mounting
@pytest.mark.parametrize("trick", TRICKS)
def test_a_hostile_cache_writes_nothing_outside_its_folder_in_the_next_guest(
    trick: str, place: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest's own tar, as root: it may refuse, which fails the step, but it writes nowhere else."""
    monkeypatch.setattr(linux, "SCRATCH", f"{place}/scratch")
    (tmp_path / "c" / "master").mkdir(parents=True)
    (tmp_path / "c" / "master" / "cache.tar").write_bytes(tricks(place / "outside")[trick])
    copy = taken(tmp_path, "c")
    before = seen(place)
    guest = Unix(place / "none")
    said = bytearray()
    try:
        with session("linux", guest, key) as opened:
            try:
                assert run(opened, a_step(place, "echo ran"), [copy], {}, said) == 0
            except MachineError as error:
                assert "unpacking cache c failed in the guest" in error.message
                assert not said, "the command did not run"
            else:
                assert bytes(said) == b"ran\n"
    finally:
        guest.close()
    inside = (f"{place}/scratch", f"{place}/cache")
    after = {path: content for path, content in seen(place).items() if not path.startswith(inside)}
    assert after == before
    assert (place / "outside" / "there").stat().st_nlink == 1
    assert (place / "outside" / "there").stat().st_mode & 0o7777 == 0o644


# -- scp: the guest may send anything


def scp_says(*words: bytes) -> object:
    """A guest that sends the next of these words after each reply of the host."""

    def handler(command: str, stdin: IO[bytes], stdout: IO[bytes]) -> int:
        with suppress(OSError, EOFError):  # the host has hung up
            for word in words:
                stdin.read(1)
                stdout.write(word)
        return 0

    return handler


def got(tmp_path: Path, key: Path, *words: bytes) -> dict[str, bytes]:
    """Return the content of the folder that the host fetched `file` into."""
    folder = tmp_path / "host"
    folder.mkdir()
    with session("windows", scp_says(*words), key) as opened:  # type: ignore[arg-type]
        opened.connection.get("/x", folder / "file")
    return {path.name: path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, b"0644") for name in (b"file", b"../../evil", b"/etc/evil", b"", b".", b"..", b"a b\xff")),
        *((b"file", mode) for mode in (b"7777", b"0000", b"0" * 400 + b"7" * 400, b"x", b"")),
    ],
)
def test_names_and_modes_that_scp_sends_are_ignored(tmp_path: Path, key: Path, name: bytes, mode: bytes) -> None:
    assert got(tmp_path, key, b"C" + mode + b" 5 " + name + b"\n", b"hello\0") == {"file": b"hello"}
    assert (tmp_path / "host" / "file").stat().st_mode & 0o7777 == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host", "key"]


@pytest.mark.parametrize(
    "words",
    [
        [b"D0755 0 ..\n"],
        [b"D0755 0 x\n", b"C0644 5 evil\n", b"hello\0"],
        [b"E\n"],
        [b"T1 0 1 0\n"],
        [b"T" + b"9" * 900 + b" 0 1 0\n"],
        [b"C0644 5 x\n", b"hello\0", b"C0644 5 evil\n", b"hello\0"],
        [b"C0644 5 x\n", b"hello\0", b"D0755 0 ..\n"],
        [b"C0644 5 x\n", b"hello, and more than was promised\0"],
        [b"C0644 5 x\n", b"hell"],
        [b"C0644 " + b"9" * 900 + b" x\n", b"hello\0"],
        [b"C0644 many x\n"],
        [b"C0644\n"],
        [b"C\n"],
        [b"no line"],
        [b"\x01\xff\xfe no text\n"],
        [b"\x02stop\n"],
        [b"\n"],
        [b"\0" * 2000],
        [],
    ],
    ids=range(19),
)
def test_any_other_reply_to_scp_is_one_error(tmp_path: Path, key: Path, words: list[bytes]) -> None:
    with pytest.raises(MachineError, match="scp with the guest failed"):
        got(tmp_path, key, *words)
    assert {path.name for path in tmp_path.rglob("*")} <= {"host", "key", "file"}


def endless(command: str, stdin: IO[bytes], stdout: IO[bytes]) -> int:
    """A guest that sends an endless file."""
    with suppress(OSError, EOFError):  # the host has hung up
        if command.startswith("scp"):
            stdin.read(1)
            stdout.write(b"C0644 %d x\n" % (1 << 62))
            stdin.read(1)
        while True:
            stdout.write(bytes(1 << 16))
    return 0


def test_an_endless_file_ends_when_the_disk_is_full(key: Path) -> None:
    """The store turns this error into a message with a hint."""
    with session("linux", endless, key) as opened:
        with pytest.raises(OSError, match="No space left") as caught:
            opened.connection.get("/x", Path("/dev/full"))
        assert caught.value.errno == errno.ENOSPC
        with Path("/dev/full").open("wb", buffering=0) as out, pytest.raises(OSError, match="No space left"):
            opened.connection.fetch("sh", b"", out, what="fetching")


def test_a_commands_status_must_be_a_small_number(key: Path) -> None:
    """The command can read the mark, since it has the shell's stdin."""

    def handler(command: str, stdin: IO[bytes], stdout: IO[bytes]) -> int:
        mark = stdin.read().split()[-1]
        stdout.write(mark + b" " + b"9" * 10_000 + b"\n")
        return 0

    with session("linux", handler, key) as opened:
        assert opened.connection.run("sh", lambda mark: f"x {mark}\n".encode(), lambda data: None) == 255


# -- an archive with the files of a build


def manifest(tmp_path: Path, data: bytes) -> tree.Manifest:
    (tmp_path / "a.tar").write_bytes(data)
    return manifest_of(tmp_path / "a.tar", owner=(0, 0))


def header(
    name: bytes = b"a", kind: bytes = b"0", size: bytes = b"0", link: bytes = b"", uid: bytes = b"0", **more: bytes
) -> bytes:
    """A GNU tar header with anything in it; `more` gives the bytes at offset N as `at_N`."""
    block = bytearray(512)
    for at, text in ((0, name), (100, b"0000644"), (108, uid), (116, b"0"), (124, size), (136, b"0")):
        block[at : at + len(text)] = text
    for at, text in ((156, kind), (157, link), (257, b"ustar  ")):
        block[at : at + len(text)] = text
    for where, text in more.items():
        at = int(where.removeprefix("at_"))
        block[at : at + len(text)] = text
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)


def test_a_plain_archive_is_read() -> None:
    """So the archives in the next test are refused only for what is odd in them."""
    with tempfile.TemporaryDirectory() as folder:
        assert manifest(Path(folder), header() + END) == (
            ("file", "a", "644", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        )


@pytest.mark.parametrize(
    "data",
    [
        header(name=b"/a") + END,
        header(name=b"a/../../b") + END,
        header(name=b"a/") + END,
        header(name=b"") + END,
        header(name=b"a\0b") + END,
        header(kind=b"3") + END,
        header(kind=b"6") + END,
        header(kind=b"7") + END,
        header(kind=b"\0") + END,
        header(kind=b"D", size=b"1") + bytes(512) + END,
        header(kind=b"5", size=b"1000") + bytes(512) + END,
        header(kind=b"1", link=b"b", size=b"1000") + bytes(512) + END,
        header(uid=b"1000") + END,
        header(size=b"\xff" * 11 + b"\0") + END,
        header(size=b"\x80" + b"\xff" * 11) + END,
        header(size=b"8") + END,
        header(size=b"-1") + END,
        header(at_345=b"prefix") + END,
        header(kind=b"x", size=b"20") + b"20 path=somewhere\n".ljust(512, b"\0") + header() + END,
        header(kind=b"L", size=b"4") + b"a\0b\0".ljust(512, b"\0") + header() + END,
        header(kind=b"L", size=b"2") + b"a\0".ljust(512, b"\0") + END,
        (header(kind=b"L", size=b"2") + b"a\0".ljust(512, b"\0")) * 2000 + header() + END,
        header(kind=b"S", at_386=b"0\0", at_398=b"5", at_483=b"1") + END,
        header(kind=b"S", at_386=b"5\0", at_398=b"0", at_410=b"1\0", at_422=b"0", at_483=b"9") + END,
        header(kind=b"S", at_482=b"\1") + bytes(504),
        header(kind=b"S", at_483=b"\x80\0\0\0\x10" + bytes(7)) + END,
        header() + bytes(512) + header(name=b"hidden") + END,
        header() + bytes(512),
        header(),
        header()[:300],
        header()[:148] + b"0000000\0" + header()[156:] + END,
        b"",
    ],
    ids=range(32),
)
def test_an_archive_that_gnu_tar_would_not_write_is_refused(tmp_path: Path, data: bytes) -> None:
    """Else it could show other files to us than to the next guest's tar, and so get a layer under a false id."""
    with pytest.raises(ObuildError):
        manifest(tmp_path, data)


def test_an_archive_of_gnu_tar_is_read_as_tar_lists_it(place: Path) -> None:
    """Links, holes, long names, an unusual owner: our tree of it is what tar lists."""
    import subprocess

    source = place / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / ("n" * 200)).write_text("long")
    (source / "hard").hardlink_to(source / "sub" / ("n" * 200))
    (source / "soft").symlink_to("t" * 200)
    with (source / "holes").open("wb") as file:
        for number in range(60):
            file.seek(number << 16)
            file.write(b"x" * 4096)
        file.truncate(8 << 20)
    (source / "hole").touch()
    os.truncate(source / "hole", 5 << 20)
    owner = (3_000_000, 70_000)
    text = by_gnu_tar(["tar"], [f"{place}/source"], exclude=(), rename=None, owner=owner).script
    done = subprocess.run(["sh"], input=text, capture_output=True, check=True)
    (place / "a.tar").write_bytes(done.stdout)
    assert len(done.stdout) < 1 << 20
    found = manifest_of(place / "a.tar", owner=(3_000_000, 70_000))
    expected = {
        (kind, f"source/{path}" if path else "source", mode, content)
        for kind, path, mode, content in tree.walk(source, ["."]).manifest
    }
    contents = {entry[1]: entry for entry in found}
    for kind, path, mode, content in expected:
        if kind in ("dir", "symlink") or (contents[path][0] == "file" and kind == "file"):
            assert contents[path] == (kind, path, mode, content)
    assert len(found) == len(expected) + 1
    assert contents["source"][0] == "dir"
