"""A whole step on each OS, over real SSH: caches, secrets, a command, a tree. The server acts as the guest."""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import IO

import pytest

from obuild.errors import MachineError, StoreError
from obuild.guests import freebsd, linux, openbsd
from obuild.plan import tree
from obuild.plan.steps import Chain, Command, Transfer
from obuild.spec import Cache, Secret, UnixUser, WindowsUser
from obuild.store.layers import Store
from tests.support.guests import Windows, key, mounting, place, run, session, taken
from tests.support.ssh_server import Handler, Unix, bsd_programs

__all__ = ["key", "place"]

UNIX = {"linux": linux, "freebsd": freebsd, "openbsd": openbsd}

like_windows = pytest.mark.skipif(
    not shutil.which("bsdtar") or not shutil.which("scp"), reason="needs scp, and bsdtar, the tar of Windows"
)


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
    """A step of root with one cache."""
    return Command(
        argv=("sh", "-c", text),
        cwd="/",
        env=(),
        user=UnixUser(0, 0),
        network=False,
        caches=(Cache("c", str(cache)),),
    )


#: Makes files in the current folder that tar treats specially.
ODD_FILES = f"""set -e
    echo x >a; chown 7:8 a; chmod 4711 a; ln a hard; ln -s a link; ln -s {"long/" * 50} far; mkfifo fifo
    truncate -s 10M sparse; printf end >>sparse; mkdir -m 1777 dir; mkdir -p {"d" * 120}/{"e" * 120}
    echo y >{"d" * 120}/{"e" * 120}/{"f" * 200}; touch "$(printf 'b\\377\n')" -- -C
    touch -d @1000000000 dir .; chown 9:10 ."""

#: How the folder $PWD was packed into the file $OUT when scp transferred it.
PACKED = {
    "linux": "tar --create --file=$OUT --format=gnu --sort=name --numeric-owner --sparse .",
    "freebsd": "find . -print0 | LC_ALL=C sort -z | "
    "tar -c -f $OUT --format gnutar --numeric-owner --no-recursion --null -T -",
    "openbsd": "gtar --create --file=$OUT --format=gnu --sort=name --numeric-owner --sparse .",
}


@mounting
@pytest.mark.parametrize("login", ["root", "opam"])
@pytest.mark.parametrize("os", UNIX)
def test_a_cache_is_stored_as_it_was_with_scp(
    os: str, login: str, place: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte; only FreeBSD's tar pads what it writes to a pipe. An unchanged cache is not written again."""
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
    """A guest that only sends a cache's archive, as the given function does."""

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
def test_a_cache_that_arrives_incomplete_does_not_replace_the_old_one(
    sends: Callable[[IO[bytes]], int], said: str, key: Path, tmp_path: Path
) -> None:
    stored = tmp_path / "c" / "master" / "cache.tar"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"as it was")
    with session("linux", guest_that(sends), key) as opened, pytest.raises(MachineError, match=said):
        run(opened, cached("/c", "true"), [taken(tmp_path, "c")], {}, bytearray())
    assert stored.read_bytes() == b"as it was"


def test_a_cache_that_fills_the_hosts_disk_is_reported(
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
