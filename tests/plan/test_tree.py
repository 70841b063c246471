"""The files of a copy: what is taken, what is refused, and that what is sent is what was hashed."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.errors import ObuildError, UsageError
from obuild.plan import tree


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


def paths(found: tree.Tree) -> list[str]:
    return [entry.path for entry in found.entries]


def tar(found: tree.Tree, uid: int = 0, gid: int = 0) -> tarfile.TarFile:
    sink = io.BytesIO()
    tree.send(found, sink, uid=uid, gid=gid)
    sink.seek(0)
    return tarfile.open(fileobj=sink, encoding="utf-8", errors="surrogateescape")


def unpack(found: tree.Tree, dest: Path) -> None:
    dest.mkdir()
    stream = io.BytesIO()
    tree.send(found, stream, uid=os.getuid(), gid=os.getgid())
    subprocess.run(["tar", "-xp", "-C", dest], input=stream.getvalue(), check=True)


def test_sources_go_under_their_basenames_parents_first(root: Path) -> None:
    assert paths(tree.walk(root, ["sub/deep", "a"])) == ["deep", "deep/c", "a"]


@pytest.mark.parametrize("source", [".", "", "/", "./", "sub/."])
def test_the_source_folder_itself_stands_for_its_contents(root: Path, source: str) -> None:
    if source == "sub/.":
        assert paths(tree.walk(root, [source])) == ["sub", "sub/b", "sub/deep", "sub/deep/c"]
    else:
        everything = ["a", "empty", "link", "sub", "sub/b", "sub/deep", "sub/deep/c"]
        assert paths(tree.walk(root, [source])) == everything


def test_a_renamed_folder_stands_for_its_contents(root: Path) -> None:
    assert paths(tree.walk(root, ["sub"], rename="")) == ["b", "deep", "deep/c"]


def test_a_single_file_can_be_renamed(root: Path) -> None:
    (entry,) = tree.walk(root, ["sub/b"], rename="new").entries
    assert (entry.path, entry.source) == ("new", "sub/b")


def test_siblings_come_in_byte_order(root: Path) -> None:
    for name in ("B", "é", "z", "_"):
        (root / "empty" / name).touch()
    assert paths(tree.walk(root, ["empty"])) == [f"empty/{name}" if name else "empty" for name in ["", *"B_zé"]]


def test_excluded_basenames_are_left_out_at_every_depth(root: Path) -> None:
    (root / "sub" / "deep" / "b").touch()
    assert paths(tree.walk(root, ["."], exclude=["b", "empty"])) == ["a", "link", "sub", "sub/deep", "sub/deep/c"]


def test_an_entry_says_kind_mode_and_content(root: Path) -> None:
    (root / "a").chmod(0o4751)
    digest = hashlib.sha256(b"a").hexdigest()
    assert tree.walk(root, ["a", "link"]).manifest == (
        ("file", "a", "4751", digest),
        ("symlink", "link", "777", "a"),
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a").write_text("A"),
        lambda root: (root / "a").chmod(0o600),
        lambda root: (root / "empty").chmod(0o700),
        lambda root: (root / "a").rename(root / "z"),
        lambda root: (root / "empty" / "new").touch(),
        lambda root: ((root / "link").unlink(), (root / "link").symlink_to("sub")),
    ],
)
def test_what_arrives_differently_has_another_manifest(root: Path, change: Callable[[Path], object]) -> None:
    before = tree.walk(root, ["."]).manifest
    change(root)
    assert tree.walk(root, ["."]).manifest != before


def test_times_are_not_part_of_the_manifest(root: Path) -> None:
    before = tree.walk(root, ["."]).manifest
    os.utime(root / "a", (1, 1))
    assert tree.walk(root, ["."]).manifest == before


@pytest.mark.parametrize("source", ["../root/a", "sub/../a", ".."])
def test_dots_cannot_lead_outside(root: Path, source: str) -> None:
    with pytest.raises(UsageError, match="outside"):
        tree.walk(root, [source])


def test_a_symlink_is_copied_but_never_followed(root: Path) -> None:
    (root / "out").symlink_to("/etc")
    assert tree.walk(root, ["out"]).entries[0].content == "/etc"
    with pytest.raises(UsageError, match="not a directory"):
        tree.walk(root, ["out/passwd"])


@pytest.mark.parametrize("source", ["none", "sub/none", "a\0b", "x" * 5000])
def test_a_source_that_cannot_be_read_is_named(root: Path, source: str) -> None:
    with pytest.raises(UsageError, match=r"copy source"):
        tree.walk(root, [source])


def test_a_path_through_a_file_is_refused(root: Path) -> None:
    with pytest.raises(UsageError, match="'a' is not a directory"):
        tree.walk(root, ["a/b"])


def test_a_fifo_is_refused_and_never_waited_for(root: Path) -> None:
    os.mkfifo(root / "sub" / "pipe")
    with pytest.raises(UsageError, match="sub/pipe") as caught:
        tree.walk(root, ["."])
    assert caught.value.hint == "leave it out: (exclude pipe)"
    assert "sub/pipe" not in paths(tree.walk(root, ["."], exclude=["pipe"]))


@pytest.mark.parametrize(("source", "is_folder"), [("sub", True), (".", True), ("a", False), ("link", False)])
def test_only_a_real_folder_is_one(root: Path, source: str, is_folder: bool) -> None:
    assert tree.is_folder(root, source) is is_folder


def test_hard_links_stay_links(root: Path, tmp_path: Path) -> None:
    (root / "sub" / "hard").hardlink_to(root / "a")
    found = tree.walk(root, ["."])
    assert {entry.path: entry.kind for entry in found.entries}["sub/hard"] == "link"
    unpack(found, tmp_path / "out")
    assert (tmp_path / "out" / "a").samefile(tmp_path / "out" / "sub" / "hard")


def test_a_file_whose_other_name_is_not_copied_is_a_file(root: Path) -> None:
    (root / "hard").hardlink_to(root / "a")
    assert [entry.kind for entry in tree.walk(root, ["hard"]).entries] == ["file"]


def test_a_tree_arrives_as_it_was(root: Path, tmp_path: Path) -> None:
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
def test_any_file_name_arrives_as_the_bytes_it_is(root: Path, name: bytes) -> None:
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
def test_a_symlink_arrives_with_the_very_target_it_has(root: Path, target: str) -> None:
    os.symlink(target, root / "new")  # noqa: PTH211  # a Path would not keep the target as it is
    with tar(tree.walk(root, ["new"])) as archive:
        assert archive.getmembers()[0].linkname == target


def test_a_hard_link_is_not_sent_as_one_to_a_file_that_was_overwritten(root: Path, tmp_path: Path) -> None:
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
        tree.send(found, sink, uid=0, gid=0)
    assert not sink.getvalue().endswith(bytes(1024)), "the stream must not look complete"


def test_sending_does_not_change_the_source(root: Path) -> None:
    before = (root / "a").stat()
    tar(tree.walk(root, ["."])).close()
    after = (root / "a").stat()
    assert (before.st_mtime_ns, stat.S_IMODE(before.st_mode)) == (after.st_mtime_ns, stat.S_IMODE(after.st_mode))
