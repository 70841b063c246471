"""Extracting a guest's archive: whole and under one name, or not at all; and nothing anywhere else."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.errors import ObuildError, UsageError
from obuild.guests.tar import by_gnu_tar
from obuild.host.tar_extract import DEEPEST, place, unpack
from tests.support.archives import FILE, FOLDER, LINK, SYMLINK, Entry, packed, seen, tricks

TOP: Entry = ("top", FOLDER, "")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder to extract into, beside a file that a guest could try to harm."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/there").write_text("as it was")
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


Out = Callable[..., Path]


@pytest.fixture
def out(here: Path) -> Out:
    """Extract an archive as `here/out`; `out.left_out` is what was left out."""

    def run(data: bytes, *, root: bool = False, strict: bool = True, to: str = "out") -> Path:
        archive = here.parent / "archive.tar"
        archive.write_bytes(data)
        left_out[:] = unpack(archive, here / to, root=root, strict=strict)
        return here / to

    left_out: list[str] = []
    run.left_out = left_out  # type: ignore[attr-defined]
    return run


def of_gnu_tar(path: Path | str) -> bytes:
    """The archive that a Linux guest sends for one of its files."""
    script = by_gnu_tar(("tar",), [str(path)], exclude=(), rename=None, owner=(0, 0)).script
    return subprocess.run(["sh"], input=script, check=True, capture_output=True).stdout


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# -- where it goes


def test_it_goes_where_cp_would_put_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "folder").mkdir()
    (here / "file").touch()
    (here / "link").symlink_to("folder")
    monkeypatch.chdir(here)
    assert place(f"{here}/new", "x") == here / "new"
    assert place(f"{here}/folder", "x") == here / "folder/x"
    assert place(f"{here}/folder/", "x") == here / "folder/x"
    assert place(f"{here}/link", "x") == here / "link/x"
    assert place(f"{here}/file", "x") == here / "file"
    assert place(".", "x") == Path("x")
    assert place("new", "") == Path("new")


@pytest.mark.parametrize(
    ("dest", "name", "why"),
    [
        ("none/new", "x", "no folder"),
        ("new/", "x", "no folder"),
        ("file/new", "x", "no folder"),
        ("folder", "inner", "is a folder"),
        ("folder", "link", "is a folder"),
        ("folder", "", "already exists"),
        ("fifo", "x", "not a regular file"),
        ("folder", "null", "not a regular file"),
    ],
)
def test_a_place_where_nothing_can_be_put_is_refused(here: Path, dest: str, name: str, why: str) -> None:
    (here / "folder/inner").mkdir(parents=True)
    (here / "folder/link").symlink_to("inner")
    (here / "folder/null").symlink_to("/dev/null")
    (here / "file").touch()
    os.mkfifo(here / "fifo")
    with pytest.raises(UsageError, match=why):
        place(f"{here}/{dest}", name)


# -- what is extracted


def test_a_folder_is_extracted_without_owners_and_special_bits(tmp_path: Path, here: Path, out: Out) -> None:
    top = tmp_path / "top"
    (top / "sub/deep").mkdir(parents=True)
    (top / "file").write_text("x")
    (top / "file").chmod(0o6751)
    os.link(top / "file", top / "sub/again")
    (top / "sub/link").symlink_to("/etc/passwd")
    os.link(top / "sub/link", top / "sub/link2", follow_symlinks=False)
    (top / "sub/dangling").symlink_to("../../nowhere/")
    (top / ("long" * 50)).write_text("long name")
    odd = os.fsencode(top) + b"/odd\n\xff"
    with open(odd, "w") as file:  # noqa: PTH123  # a name in bytes
        file.write("odd")
    os.mkfifo(top / "pipe")
    os.link(top / "pipe", top / "pipe2")
    (top / "sub/deep").chmod(0o1500)
    (top / "sub").chmod(0o700)
    top.chmod(0o2555)
    made = out(of_gnu_tar(top))
    assert list(here.iterdir()) == [made]
    assert [mode(path) for path in (made, made / "sub", made / "sub/deep")] == [0o555, 0o700, 0o500]
    assert mode(made / "file") == 0o751
    assert (made / "file").samefile(made / "sub/again")
    links = [os.readlink(made / "sub" / name) for name in ("link", "link2", "dangling")]  # noqa: PTH115
    assert links == ["/etc/passwd", "/etc/passwd", "../../nowhere/"]
    assert (made / ("long" * 50)).read_text() == "long name"
    assert b"odd\n\xff" in os.listdir(os.fsencode(made))
    assert not (made / "pipe").exists()
    assert out.left_out == ["top/pipe", "top/pipe2"]  # type: ignore[attr-defined]


def test_a_sparse_file_stays_sparse(tmp_path: Path, out: Out) -> None:
    with (tmp_path / "disk").open("wb") as file:
        for index in range(60):  # more pieces than one header holds
            file.seek(index << 20)
            file.write(b"data %d" % index)
        file.truncate(1 << 40)
    made = out(of_gnu_tar(tmp_path / "disk"))
    assert made.stat().st_size == 1 << 40
    assert made.stat().st_blocks * 512 < 2 << 20
    with made.open("rb") as file:
        file.seek(59 << 20)
        assert file.read(10) == b"data 59\0\0\0"


def test_a_root_is_extracted_as_its_content(tmp_path: Path, out: Out) -> None:
    (tmp_path / "top/sub").mkdir(parents=True)
    (tmp_path / "top/sub/file").write_text("x")
    os.link(tmp_path / "top/sub/file", tmp_path / "top/other")
    made = out(of_gnu_tar(f"{tmp_path}/top/."), root=True)
    assert (made / "other").samefile(made / "sub/file")


@pytest.mark.parametrize("kind", [FILE, SYMLINK])
def test_a_single_member_gets_the_name_that_the_user_gives(out: Out, kind: bytes) -> None:
    made = out(packed(("its-name", kind, "to" if kind == SYMLINK else "")))
    assert made.name == "out"
    assert made.is_symlink() == (kind == SYMLINK)


def test_a_hard_link_becomes_a_copy_where_links_are_not_supported(
    tmp_path: Path, out: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: object, dest: object, *, follow_symlinks: bool) -> None:
        raise OSError(errno.EPERM, "no such thing here")

    data = packed(TOP, ("top/a", FILE, ""), ("top/b", LINK, "top/a"), ("top/c", LINK, "top/b"))
    monkeypatch.setattr(os, "link", link)
    made = out(data)
    assert [(made / name).read_bytes() for name in "abc"] == [b"evil"] * 3
    assert (made / "c").stat().st_nlink == 1


needs_bsdtar = pytest.mark.skipif(not shutil.which("bsdtar"), reason="needs bsdtar, the tar of FreeBSD")


@needs_bsdtar
def test_an_archive_by_bsdtar_is_extracted(tmp_path: Path, out: Out) -> None:
    top = tmp_path / "top"
    top.mkdir()
    with (top / "sparse").open("wb") as file:
        for index in range(60):
            file.seek(index << 20)
            file.write(b"data %d" % index)
        file.truncate(100 << 20)
    (top / ("é" * 120)).write_text("long name")
    os.link(top / "sparse", top / "twin")
    (top / "link").symlink_to("sparse")
    argv = ["bsdtar", "-c", "-f", "-", "--format", "pax", "-C", str(tmp_path), "./top"]
    made = out(subprocess.run(argv, check=True, capture_output=True).stdout, strict=False)
    assert (made / "sparse").read_bytes() == (top / "sparse").read_bytes()
    assert (made / "sparse").stat().st_blocks * 512 < 2 << 20
    assert (made / "twin").samefile(made / "sparse")
    assert (made / ("é" * 120)).read_text() == "long name"
    assert (made / "link").is_symlink()


def pax_sparse(listed: bytes, data: bytes, size: bytes = b"1000") -> bytes:
    """An archive of one sparse file, as GNU tar and bsdtar write them in the pax format."""
    told = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s"}
    info = tarfile.TarInfo("GNUSparseFile.0/s")
    info.pax_headers = {**told, "GNU.sparse.realsize": size.decode()}
    body = listed.ljust(-(-len(listed) // 512) * 512, b"\0") + data
    info.size = len(body)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(body))
    return raw.getvalue()


def test_a_sparse_file_in_the_pax_format(out: Out) -> None:
    made = out(pax_sparse(b"2\n10\n3\n1000\n0\n", b"abc"), strict=False)
    assert made.read_bytes() == bytes(10) + b"abc" + bytes(987)
    many = b"400\n" + b"".join(b"%d\n1\n" % (2 * index) for index in range(400))
    made = out(pax_sparse(many, b"x" * 400), strict=False, to="many")
    assert made.read_bytes() == b"x\0" * 400 + bytes(200)


@pytest.mark.parametrize(
    "data",
    [
        pax_sparse(b"", b""),
        pax_sparse(b"1\n10\n3\n", b"ab"),
        pax_sparse(b"1\n10\n3\n", b"abcd"),
        pax_sparse(b"2\n10\n3\n5\n1\n", b"abcd"),
        pax_sparse(b"1\n999\n3\n", b"abc"),
        pax_sparse(b"2\n10\n3\n", b"abc"),
        pax_sparse(b"-1\n", b""),
        pax_sparse(b"99999999999\n", b""),
        pax_sparse(b"1" * 3000, b""),
        pax_sparse(b"1\n0\n3\n", b"abc", b"-5"),
        pax_sparse(b"1\n0\n3\n", b"abc", b"99999999999999999999"),
        pax_sparse(b"1\n0\n3\n", b"abc", b"9999999999999999999"),
    ],
)
def test_a_malformed_sparse_file_is_refused(here: Path, out: Out, data: bytes) -> None:
    with pytest.raises(ObuildError):
        out(data, strict=False)
    assert list(here.iterdir()) == []


# -- what a hostile guest may try


def hostile(outside: Path) -> dict[str, bytes]:
    """Archives that try to reach something outside, or to confuse us."""
    up = "../" * 12
    through = f"top/s/{up}{outside}"
    return {
        **tricks(outside),
        "dots-below": packed(TOP, (f"top/{up}{outside}/new", FILE, "")),
        "dots-folder": packed(TOP, ("top/..", FOLDER, ""), ("top/../new", FILE, "")),
        "only-dots": packed(("..", FOLDER, ""), ("../new", FILE, "")),
        "a-dot": packed(TOP, ("top/./a", FILE, "")),
        "double-slash": packed(TOP, ("top//a", FILE, "")),
        "through-a-symlink-below": packed(TOP, ("top/s", SYMLINK, str(outside)), ("top/s/new", FILE, "")),
        "folder-through-a-symlink": packed(TOP, ("top/s", SYMLINK, str(outside)), ("top/s/new", FOLDER, "")),
        "through-a-link-to-a-symlink": packed(
            *(TOP, ("top/s", SYMLINK, str(outside)), ("top/h", LINK, "top/s"), ("top/h/new", FILE, ""))
        ),
        "dots-through-a-symlink": packed(TOP, ("top/s", SYMLINK, "/"), (f"{through}/new", FILE, "")),
        "file-over-a-symlink": packed(TOP, ("top/s", SYMLINK, f"{outside}/there"), ("top/s", FILE, "")),
        "folder-over-a-symlink": packed(TOP, ("top/s", SYMLINK, str(outside)), ("top/s", FOLDER, "")),
        "file-over-a-hard-link": packed(TOP, ("top/a", FILE, ""), ("top/h", LINK, "top/a"), ("top/h", FILE, "")),
        "file-twice": packed(TOP, ("top/a", FILE, ""), ("top/a", FILE, "")),
        "folder-twice": packed(TOP, TOP),
        "file-in-a-file": packed(("top", FILE, ""), ("top/a", FILE, "")),
        "no-folder": packed(TOP, ("top/a/b", FILE, "")),
        "another-top": packed(TOP, ("other", FILE, "")),
        "link-out": packed(TOP, ("top/h", LINK, f"{outside}/there")),
        "link-out-by-dots": packed(TOP, ("top/h", LINK, f"top/{up}{outside}/there")),
        "link-to-a-folder": packed(TOP, ("top/h", LINK, "top")),
        "link-to-itself": packed(TOP, ("top/h", LINK, "top/h")),
        "link-ahead": packed(TOP, ("top/h", LINK, "top/a"), ("top/a", FILE, "")),
        "link-through-a-symlink": packed(*(TOP, ("top/s", SYMLINK, str(outside)), ("top/h", LINK, "top/s/there"))),
        "a-device": packed(("top", tarfile.CHRTYPE, "")),
        "in-a-device": packed(("top", tarfile.BLKTYPE, ""), ("top/a", FILE, "")),
        "deep": packed(*(("/".join(["top", *("d" * count)]), FOLDER, "") for count in range(DEEPEST + 2))),
        "name-too-long": packed(TOP, (f"top/{'n' * 300}", FILE, "")),
        "empty-symlink": packed(TOP, ("top/s", SYMLINK, "")),
        "no-members": bytes(10240),
    }


@pytest.mark.parametrize("trick", sorted(hostile(Path("/x"))))
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("root", [True, False])
def test_a_hostile_archive_creates_nothing_and_harms_nothing(
    tmp_path: Path, here: Path, out: Out, trick: str, strict: bool, root: bool
) -> None:
    before = seen(tmp_path / "outside")
    with pytest.raises(ObuildError) as caught:
        out(hostile(tmp_path / "outside")[trick], strict=strict, root=root)
    assert caught.value.exit_code == 1
    assert list(here.iterdir()) == []
    assert seen(tmp_path / "outside") == before


def test_a_symlink_as_the_only_member_is_made_and_not_followed(tmp_path: Path, out: Out) -> None:
    before = seen(tmp_path / "outside")
    made = out(packed(("top", SYMLINK, str(tmp_path / "outside"))))
    assert made.readlink() == tmp_path / "outside"
    assert seen(tmp_path / "outside") == before


def header(name: bytes, size: int, **fields: bytes) -> bytes:
    """A GNU tar header of a sparse file with one piece of 0 bytes at its end."""
    info = tarfile.TarInfo(name.decode())
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[386:410] = b"%011o\0%011o\0" % (0, 0)
    block[483:495] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_a_file_too_large_for_any_file_system_is_refused(here: Path, out: Out) -> None:
    for size in (1 << 62, 1 << 63, 1 << 80):
        with pytest.raises(ObuildError, match=r"cannot write|larger than"):
            out(header(b"huge", size) + bytes(1024))
    assert list(here.iterdir()) == []
    assert out(header(b"large", 1 << 40) + bytes(1024)).stat().st_blocks == 0


def test_unreadable_folders_are_removed_after_an_error(
    here: Path, out: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes at the last moment, when a hostile folder has its final mode."""

    def rename(self: Path, target: object) -> None:
        raise OSError(errno.EIO, "the disk is on fire")

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind in (("top", FOLDER), ("top/shut", FOLDER), ("top/shut/file", FILE)):
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0
            archive.addfile(info, io.BytesIO())
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ObuildError, match="on fire"):
        out(raw.getvalue())
    assert list(here.iterdir()) == []


# -- when the destination exists


def test_a_file_replaces_a_file_or_a_link_and_nothing_else(tmp_path: Path, here: Path, out: Out) -> None:
    file, link, folder = packed(("a", FILE, "")), packed(("a", SYMLINK, "to")), packed(("a", FOLDER, ""))
    (here / "out").write_text("old")
    for other in (link, folder):
        with pytest.raises(ObuildError, match="not replaced"):
            out(other)
        assert (here / "out").read_text() == "old"
    assert out(file).read_text() == "evil"

    (here / "out").unlink()
    (here / "out").symlink_to(tmp_path / "outside")
    for any_of_them in (file, link, folder):
        with pytest.raises(ObuildError, match="not replaced"):
            out(any_of_them)
        assert (here / "out").readlink() == tmp_path / "outside"

    (here / "out").unlink()
    (here / "out").symlink_to("nowhere")
    with pytest.raises(ObuildError, match="not replaced"):
        out(folder)
    assert out(link).readlink() == Path("to")
    (here / "out").unlink()
    (here / "out").symlink_to(tmp_path / "outside/there")
    assert not out(file).is_symlink()
    assert (tmp_path / "outside/there").read_text() == "as it was"


def test_a_folder_that_appears_meanwhile_is_kept(here: Path, out: Out) -> None:
    (here / "out").mkdir()
    for data in (packed(("a", FILE, "")), packed(("a", FOLDER, ""))):
        with pytest.raises(ObuildError):
            out(data)
    assert list(here.iterdir()) == [here / "out"]


def test_the_error_names_a_folder_that_cannot_be_written_to(here: Path, out: Out) -> None:
    with pytest.raises(ObuildError, match=f"cannot write {here}/none/out"):
        out(packed(("a", FILE, "")), to="none/out")
