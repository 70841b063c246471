"""Hostile source trees: each is copied as it is, or refused with one line that names it."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from obuild.errors import ObuildError, UsageError
from obuild.plan import tree
from obuild.plan.archive import send

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs to be root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root" / "sub" / "file").write_text("text")
    return tmp_path / "root"


def sent(found: tree.Tree) -> tarfile.TarFile:
    out = io.BytesIO()
    send(found, out, uid=0, gid=0)
    out.seek(0)
    return tarfile.open(fileobj=out, encoding="utf-8", errors="surrogateescape")


@pytest.mark.parametrize(
    "target", ["/etc", "..", "../../..", ".", "loop", "sub/../loop", "/proc/self/root", "nowhere", "\n", "\udcff"]
)
def test_a_symlink_is_sent_as_a_symlink_wherever_it_points(root: Path, target: str) -> None:
    os.symlink(target, root / "loop")  # noqa: PTH211  # a Path would normalize the target
    found = tree.walk(root, ["."])
    assert [(entry.kind, entry.path) for entry in found.entries] == [
        ("symlink", "loop"),
        ("dir", "sub"),
        ("file", "sub/file"),
    ]
    with sent(found) as archive:
        assert archive.getmember("loop").linkname == target


@pytest.mark.parametrize("source", ["out/secret", "out/root/sub/file", "out/", "sub/out/secret", "sub/out/."])
def test_a_source_path_through_a_symlink_is_refused(root: Path, source: str) -> None:
    for link in (root / "out", root / "sub" / "out"):
        link.symlink_to(root.parent)
    if source == "out/":  # the link itself, not its target
        assert tree.walk(root, [source]).entries[0].kind == "symlink"
    elif source == "sub/out/.":
        assert [entry.kind for entry in tree.walk(root, [source]).entries] == ["symlink"]
    else:
        with pytest.raises(UsageError, match="out' is not a directory"):
            tree.walk(root, [source])


def test_the_source_folder_itself_may_be_a_symlink(root: Path) -> None:
    (root.parent / "link").symlink_to("root")
    found = tree.walk(root.parent / "link", ["."])
    assert found.manifest == tree.walk(root, ["."]).manifest
    assert tree.is_folder(root.parent / "link", ".")
    with sent(found) as archive:
        assert archive.getnames() == ["sub", "sub/file"]


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_device(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero, which never ends


def make_disk(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(7, 0))


@pytest.mark.parametrize(
    "make",
    [
        make_socket,
        os.mkfifo,
        pytest.param(make_device, marks=as_root),
        pytest.param(make_disk, marks=as_root),
    ],
)
def test_a_special_file_is_named_and_can_be_excluded(
    root: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)  # the name of a socket must be short
    make(Path("sub/odd\n"))
    with pytest.raises(UsageError) as caught:
        tree.walk(root, ["."])
    assert caught.value.message == r"cannot copy 'sub/odd\n': it is neither a file, a folder nor a symlink"
    with pytest.raises(UsageError, match="neither a file"):
        tree.walk(root, ["sub/odd\n"])
    assert len(tree.walk(root, ["."], exclude=["odd\n"]).entries) == 2


@pytest.mark.parametrize(
    "name",
    [
        *(b"new\nline", b"\r", b"\x1b[31m", b"\x01\x7f", b"\xff\xfe", b"\xed\xa0\x80", "é".encode(), b"n" * 255),
        *(b" ", b"-rf", b"...", b"~", b"*", b"\\", b'"', b"'", b"a" * 99, b"a" * 100, b"a" * 101),
    ],
)
def test_any_file_name_arrives_byte_for_byte(root: Path, name: bytes) -> None:
    (root / "sub" / os.fsdecode(name)).write_text("x")
    found = tree.walk(root, ["."])
    with sent(found) as archive:
        assert {os.fsencode(each) for each in archive.getnames()} == {b"sub", b"sub/file", b"sub/" + name}
    assert hashlib.sha256(repr(found.manifest).encode()).digest()
    (entry,) = tree.walk(root, [f"sub/{os.fsdecode(name)}"]).entries
    assert os.fsencode(entry.path) == name


def test_a_path_that_no_program_can_open_is_refused(root: Path) -> None:
    """Deeper than PATH_MAX, which `mkdir` and `cd` in turn can create."""
    at = os.open(root, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=at)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    with pytest.raises(UsageError, match="File name too long") as caught:
        tree.walk(root, ["."])
    assert len(caught.value.message) < 5000
    assert len(tree.walk(root, ["."], exclude=["d" * 250]).entries) == 2
    subprocess.run(["rm", "-rf", root / ("d" * 250)], check=True)  # pytest could not


@as_root
@pytest.mark.parametrize("path", ["sub/file", "sub"])
def test_an_unreadable_file_is_named(enterable: Path, path: str) -> None:
    """As a user other than root, since root can read anything."""
    (enterable / "sub").mkdir()
    (enterable / "sub" / "file").touch()
    (enterable / path).chmod(0)
    code = f"""
import os
from pathlib import Path
from typing import Any
from obuild.plan import archive, tree
from obuild.errors import UsageError
os.setgid(54321); os.setuid(54321)
try:
    tree.walk(Path({str(enterable)!r}), ["."])
except UsageError as error:
    print(error.message)
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert f"'{path}'" in said
    assert "Permission denied" in said


class Meddler(io.BytesIO):
    """A sink that changes the source as soon as something is sent."""

    def __init__(self, meddle: Callable[[], object]) -> None:
        super().__init__()
        self.meddle = meddle

    def write(self, data: Any) -> int:
        meddle, self.meddle = self.meddle, lambda: None
        meddle()
        return super().write(data)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize(
    "meddle",
    [
        grow,
        lambda path: os.truncate(path, 1 << 20),
        lambda path: os.truncate(path, 5 << 20),
        lambda path: path.chmod(0o600),
        lambda path: path.write_bytes(b"y" * (3 << 20)),
        lambda path: path.with_name("z").unlink(),
        lambda path: path.with_name("z").rename(path.with_name("y")),
    ],
)
def test_a_file_that_changes_while_it_is_sent_fails_the_step(root: Path, meddle: Callable[[Path], object]) -> None:
    (root / "a").write_bytes(b"x" * (3 << 20))
    (root / "a").chmod(0o644)
    (root / "z").write_text("last")
    found = tree.walk(root, ["."])
    out = Meddler(lambda: meddle(root / "a"))
    with pytest.raises(ObuildError, match="changed while it was being copied"):
        send(found, out, uid=0, gid=0)
    assert not out.getvalue().endswith(bytes(1024)), "the stream must not look complete"


class Counter:
    """A sink that discards everything."""

    count = 0

    def write(self, data: bytes) -> None:
        self.count += len(data)


def test_a_large_sparse_file_is_read_and_sent_in_pieces(root: Path) -> None:
    os.truncate(root / "sub" / "file", 256 << 20)
    found = tree.walk(root, ["sub"])
    zeros = hashlib.sha256(b"text")
    for _ in range(255):
        zeros.update(bytes(1 << 20))
    zeros.update(bytes((1 << 20) - 4))
    assert found.entries[1].content == zeros.hexdigest()
    sink = Counter()
    send(found, sink, uid=0, gid=0)
    assert 256 << 20 < sink.count < 257 << 20


def test_planning_opens_each_file_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files there are: nothing is quadratic."""
    for number in range(300):
        (root / "sub" / str(number)).touch()
    opened: list[str] = []
    really = os.open

    def count(path: str, flags: int) -> int:
        opened.append(str(path))
        return really(path, flags)

    monkeypatch.setattr(os, "open", count)
    found = tree.walk(root, ["."])
    assert len(opened) == len(set(opened)) == 301
    assert len(found.entries) == 302
