"""Archives of files to copy: exactly what was hashed is sent, and nothing that a guest sends is trusted."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.errors import ObuildError
from obuild.plan import tree
from obuild.plan.archive import manifest_of, send


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A source folder: a, sub/{b, deep/c}, empty/, link -> a."""
    root = tmp_path / "root"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    for name in ("a", "sub/b", "sub/deep/c"):
        (root / name).write_text(name)
        (root / name).chmod(0o644)
    (root / "link").symlink_to("a")
    return root


def tar(found: tree.Tree, uid: int = 0, gid: int = 0) -> tarfile.TarFile:
    sink = io.BytesIO()
    send(found, sink, uid=uid, gid=gid)
    sink.seek(0)
    return tarfile.open(fileobj=sink, encoding="utf-8", errors="surrogateescape")


def unpack(found: tree.Tree, dest: Path) -> None:
    dest.mkdir()
    stream = io.BytesIO()
    send(found, stream, uid=os.getuid(), gid=os.getgid())
    subprocess.run(["tar", "-xp", "-C", dest], input=stream.getvalue(), check=True)


def test_hard_links_stay_links(root: Path, tmp_path: Path) -> None:
    (root / "sub" / "hard").hardlink_to(root / "a")
    found = tree.walk(root, ["."])
    assert {entry.path: entry.kind for entry in found.entries}["sub/hard"] == "link"
    unpack(found, tmp_path / "out")
    assert (tmp_path / "out" / "a").samefile(tmp_path / "out" / "sub" / "hard")


def test_a_tree_arrives_unchanged(root: Path, tmp_path: Path) -> None:
    (root / "a").chmod(0o4755)
    (root / "big").write_bytes(os.urandom(100_000))
    os.utime(root / "a", (1_000_000, 1_000_000))
    unpack(tree.walk(root, ["."]), tmp_path / "out")
    assert tree.walk(tmp_path / "out", ["."]).manifest == tree.walk(root, ["."]).manifest
    assert (tmp_path / "out" / "a").stat().st_mtime == 1_000_000


def test_everything_is_owned_by_the_given_user(root: Path) -> None:
    with tar(tree.walk(root, ["."]), 1000, 4_000_000_000) as archive:
        owners = {(member.uid, member.gid, member.uname, member.gname) for member in archive}
    assert owners == {(1000, 4_000_000_000, "", "")}


@pytest.mark.parametrize("name", [b"\xff\xfe", "ü".encode(), b"n" * 200, b"new\nline", b" ", b"-rf"])
def test_any_file_name_keeps_its_bytes(root: Path, name: bytes) -> None:
    (root / "empty" / os.fsdecode(name)).write_text("x")
    with tar(tree.walk(root, ["empty"])) as archive:
        assert os.fsencode(archive.getnames()[1]) == b"empty/" + name


@pytest.mark.parametrize(
    "target",
    [
        "a",
        "/etc/passwd",
        "n" * 300,
        "\udcff",
        "./a",
        "sub/",
        "sub//b",
    ],
)
def test_a_symlink_keeps_its_exact_target(root: Path, target: str) -> None:
    os.symlink(target, root / "new")  # noqa: PTH211  # a Path would normalize the target
    with tar(tree.walk(root, ["new"])) as archive:
        assert archive.getmembers()[0].linkname == target


def test_a_hard_link_to_a_file_that_was_overwritten_is_sent_as_a_file(root: Path, tmp_path: Path) -> None:
    for name in ("p/d/x", "q/d/x"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(name)
    (root / "q" / "d" / "y").hardlink_to(root / "p" / "d" / "x")
    unpack(tree.walk(root, ["p/d", "q/d"]), tmp_path / "out")
    assert (tmp_path / "out" / "d" / "y").read_text() == "p/d/x"


def replaced_by_a_symlink(root: Path) -> None:
    (root / "a").unlink()
    (root / "a").symlink_to("/etc/hostname")


def replaced_by_a_fifo(root: Path) -> None:
    (root / "a").unlink()
    os.mkfifo(root / "a")


def retargeted(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("b")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a").write_text("A"),
        lambda root: (root / "a").write_text("longer"),
        lambda root: (root / "a").write_text(""),
        lambda root: (root / "a").unlink(),
        lambda root: (root / "a").chmod(0o600),
        lambda root: (root / "empty").rmdir(),
        replaced_by_a_symlink,
        replaced_by_a_fifo,
        retargeted,
    ],
)
def test_a_change_between_hashing_and_sending_is_noticed(root: Path, change: Callable[[Path], object]) -> None:
    found = tree.walk(root, ["."])
    change(root)
    sink = io.BytesIO()
    with pytest.raises(ObuildError, match="changed while it was being copied"):
        send(found, sink, uid=0, gid=0)
    assert not sink.getvalue().endswith(bytes(1024)), "the stream must not look complete"


def test_sending_does_not_change_the_source(root: Path) -> None:
    before = (root / "a").stat()
    tar(tree.walk(root, ["."])).close()
    after = (root / "a").stat()
    assert (before.st_mtime_ns, stat.S_IMODE(before.st_mode)) == (after.st_mtime_ns, stat.S_IMODE(after.st_mode))


def test_a_device_in_a_build_cannot_be_copied(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as out:
        member = tarfile.TarInfo("./null")
        member.type = tarfile.CHRTYPE
        out.addfile(member)
    with pytest.raises(ObuildError, match="neither a file, a folder nor a symlink"):
        manifest_of(tmp_path / "a.tar", owner=(0, 0))


@pytest.mark.parametrize("name", ["../up", "a/../../b", "/abs"])
def test_an_archive_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as out:
        out.addfile(tarfile.TarInfo(name))
    with pytest.raises(ObuildError, match="path"):
        manifest_of(tmp_path / "a.tar", owner=(0, 0))


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\0" * 100])
def test_data_that_is_not_an_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ObuildError, match="a damaged tar archive"):
        manifest_of(tmp_path / "a.tar", owner=(0, 0))


def packed(out: Path, name: str, data: bytes, *, uid: int = 0, records: dict[str, str] | None = None) -> Path:
    """A pax archive of one file whose header has these records."""
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(name)
        info.size, info.uid, info.mode, info.pax_headers = len(data), uid, 0o644, records or {}
        archive.addfile(info, io.BytesIO(data))
    return out


def test_a_pax_archive_has_the_manifest_of_its_files(tmp_path: Path) -> None:
    name = "é" * 200
    (entry,) = manifest_of(packed(tmp_path / "a.tar", name, b"data"), owner=(0, 0), pax=True)
    assert entry == ("file", name, "644", hashlib.sha256(b"data").hexdigest())


@pytest.mark.parametrize("uid", [1, 70_000, 3_000_000])
def test_the_owner_is_checked_in_a_pax_archive(tmp_path: Path, uid: int) -> None:
    path = packed(tmp_path / "a.tar", "x", b"", uid=uid)
    assert manifest_of(path, owner=(uid, 0), pax=True)
    with pytest.raises(ObuildError, match="the wrong owner"):
        manifest_of(path, owner=(0, 0), pax=True)


def test_an_owner_that_is_only_in_the_records_counts(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", "x", b"", records={"uid": "7"})
    with pytest.raises(ObuildError, match="the wrong owner"):
        manifest_of(path, owner=(0, 0), pax=True)


@pytest.mark.parametrize(
    "records", [{"GNU.sparse.map": "0,4"}, {"GNU.sparse.size": "9"}, {"GNU.sparse.major": "0"}]
)
def test_a_sparse_file_in_an_unsupported_format_is_refused(tmp_path: Path, records: dict[str, str]) -> None:
    with pytest.raises(ObuildError, match="sparse"):
        manifest_of(packed(tmp_path / "a.tar", "x", b"data", records=records), pax=True)


@pytest.mark.skipif(not shutil.which("bsdtar"), reason="needs bsdtar, from the package libarchive-tools")
def test_archives_of_bsdtar_and_gnu_tar_have_the_same_manifest(root: Path, tmp_path: Path) -> None:
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(300_000)
        file.write(b"in the middle")
    names = sorted(os.listdir(root))
    bsd = [
        "-c",
        "--format",
        "pax",
        "--uid",
        "3000000",
        "--gid",
        "70000",
        "--no-acls",
        "--no-xattrs",
        "--no-fflags",
    ]
    subprocess.run(["bsdtar", *bsd, "-f", tmp_path / "b.tar", "-C", root, *names], check=True)
    gnu = ["--create", "--format=gnu", "--sparse", "--owner=:3000000", "--group=:70000", "--sort=name"]
    subprocess.run(["tar", *gnu, f"--file={tmp_path / 'g.tar'}", "-C", root, *names], check=True)
    owner = (3_000_000, 70_000)
    found = manifest_of(tmp_path / "b.tar", owner=owner, pax=True)
    assert sorted(found) == sorted(manifest_of(tmp_path / "g.tar", owner=owner))
    assert hashlib.sha256((root / "sparse").read_bytes()).hexdigest() in {entry[3] for entry in found}
