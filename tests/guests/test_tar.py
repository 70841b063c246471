"""How Unix guests pack files for a copy from a build: their scripts run here, with the guests' tars."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from obuild.guests import freebsd, linux, openbsd
from obuild.plan import tree
from obuild.plan.archive import manifest_of
from tests.support.ssh_server import bsd_programs

pytestmark = pytest.mark.skipif(not shutil.which("bsdtar"), reason="needs bsdtar, the tar of FreeBSD")
EACH = pytest.mark.parametrize("guest", [linux, freebsd, openbsd])

#: Names that a shell, a pattern, an option, a list or a tar could take for something else.
ODD = [
    "-x", "--help", "@list", "a b", "two\nlines", "\n", "[ab]*?", "a\\nb", "\\", "~", "it's", '"', "$HOME", "`id`",
    "a:b", "\\x", "&|,", "é", "\udcff", "{a}", "!", "(", "^.$",
]  # fmt: skip


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tars, by the names that they have in the guests."""
    folder = bsd_programs(tmp_path / "programs")
    monkeypatch.setenv("BSD", str(folder))


def pack(
    guest: ModuleType,
    archive: Path,
    src: Sequence[str | Path],
    *,
    exclude: Sequence[str] = (),
    rename: str | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run the guest's script, with stdout to `archive`."""
    packing = guest.pack_files(map(str, src), exclude=exclude, rename=rename, owner=(12345, 23456))
    assert (packing.file, packing.remove) == ("", b"")
    path = os.environ["PATH"] if guest is linux else f"{os.environ['BSD']}:{os.environ['PATH']}"
    with archive.open("wb") as out:
        return subprocess.run(
            ["sh"],
            input=packing.script,
            stdout=out,
            stderr=subprocess.PIPE,
            env={"PATH": path, "LC_ALL": "C.UTF-8"},
            check=False,
        )


def packed(guest: ModuleType, archive: Path, src: Sequence[str | Path], **options: object) -> tree.Manifest:
    """The content of the archive, which must be made without errors."""
    done = pack(guest, archive, src, **options)  # type: ignore[arg-type]  # those of pack
    assert done.returncode == 0, done.stderr
    return manifest_of(archive, pax=guest is freebsd)


@pytest.fixture
def made(tmp_path: Path, programs: None) -> Path:
    """A folder with files of all kinds."""
    made = tmp_path / "made"
    (made / "out" / "sub" / "empty").mkdir(parents=True)
    (made / "out" / "sub.d").mkdir()
    (made / "out" / "sub.d" / "file").write_text("after sub/, before sub2")
    (made / "out" / "sub2").write_text("")
    (made / "out" / "one").write_text("one")
    (made / "out" / "one").chmod(0o4750)
    (made / "out" / "again").hardlink_to(made / "out" / "one")
    (made / "out" / "sub" / "third").hardlink_to(made / "out" / "one")
    (made / "out" / "sub" / "link").symlink_to("../nowhere")
    (made / "out" / "loop").symlink_to(".")
    (made / "out" / ("long" * 50)).write_text("a name that is too long for tar's own field")
    for name in ODD:
        (made / "out" / name).write_text(name, errors="surrogateescape")
        (made / "out" / "sub" / name).mkdir()
        (made / "out" / "sub" / name / "below").symlink_to(name)
    return made


@EACH
def test_a_folder_is_packed_like_a_copy_from_the_context(guest: ModuleType, made: Path, tmp_path: Path) -> None:
    """Also in the same order, so the same files have the same key wherever they come from."""
    assert packed(guest, tmp_path / "a.tar", [made / "out"]) == tree.walk(made, ["out"]).manifest
    with tarfile.open(tmp_path / "a.tar") as members:
        assert {(member.uid, member.gid, member.uname) for member in members} <= {
            (12345, 23456, "u"),
            (12345, 23456, ""),
        }


@EACH
def test_a_folder_or_a_file_is_renamed(guest: ModuleType, made: Path, tmp_path: Path) -> None:
    for rename in ("new", "&\\~1", "&|,;\n", "é"):
        whole = packed(guest, tmp_path / "a.tar", [made / "out"], rename=rename)
        assert whole == tree.walk(made, ["out"], rename=rename).manifest
    for rename in ODD:
        one = packed(guest, tmp_path / "b.tar", [made / "out" / "one"], rename=rename)
        assert one == tree.walk(made, ["out/one"], rename=rename).manifest


@EACH
def test_a_file_keeps_its_name(guest: ModuleType, made: Path, tmp_path: Path) -> None:
    names = [f"out/sub/{name}" for name in ODD]
    assert packed(guest, tmp_path / "a.tar", [made / name for name in names]) == tree.walk(made, names).manifest
    for name in ODD:
        renamed = packed(guest, tmp_path / "b.tar", [made / "out" / name], rename="new")
        assert renamed == tree.walk(made, [f"out/{name}"], rename="new").manifest


@EACH
def test_an_excluded_name_is_left_out_at_any_depth_if_it_matches_whole(
    guest: ModuleType, made: Path, tmp_path: Path
) -> None:
    for names in (["sub"], ["again"], ["below"], ["*", "o?e", "sub/link", "su", "", ".", ".."], ODD, ["-x", "\\"]):
        found = packed(guest, tmp_path / "a.tar", [made / "out"], exclude=["other", *names])
        assert found == tree.walk(made, ["out"], exclude=["other", *names]).manifest


@EACH
def test_sources_keep_their_order_even_if_one_is_inside_another(
    guest: ModuleType, made: Path, tmp_path: Path
) -> None:
    names = ["out/sub/third", "out/sub", "out/one", "out", "out/sub.d/file"]
    found = packed(guest, tmp_path / "a.tar", [made / name for name in names], exclude=["sub.d"])
    # GNU tar makes a link of any file that it meets again, libarchive of files with several names
    expected = tree.walk(made, names, exclude=["sub.d"]).manifest
    assert [entry[1] for entry in found] == [entry[1] for entry in expected]
    apart = ["out/sub.d/file", "out/sub", "out/one"]
    assert packed(guest, tmp_path / "b.tar", [made / name for name in apart]) == tree.walk(made, apart).manifest


@EACH
def test_a_dot_packs_the_contents_of_a_folder(guest: ModuleType, made: Path, tmp_path: Path) -> None:
    (made / "link").symlink_to("out")
    inside = tree.walk(made / "out", ["."]).manifest
    for spelled in ("out/.", "link/.", "./link//./."):
        found = packed(guest, tmp_path / "a.tar", [f"{made}/{spelled}"])
        assert found[0][:2] == ("dir", ".")
        assert found[1:] == inside
    renamed = packed(guest, tmp_path / "a.tar", [f"{made}/out/."], rename="new")
    assert renamed == tree.walk(made, ["out"], rename="new").manifest


@EACH
def test_a_path_is_absolute_and_may_lead_through_symlinks(guest: ModuleType, made: Path, tmp_path: Path) -> None:
    (made / "link").symlink_to("out")
    for spelled in (f"{made}//link/./sub", f"{made}/link/sub/".removeprefix("/")):
        assert packed(guest, tmp_path / "a.tar", [spelled]) == tree.walk(made / "out", ["sub"]).manifest
    assert packed(guest, tmp_path / "a.tar", [f"{made}/link/"]) == (("symlink", "link", "777", "out"),)


@EACH
def test_sparse_files_are_packed_sparse(guest: ModuleType, made: Path, tmp_path: Path) -> None:
    for name in ("sparse", "é", "s" * 120):
        with (made / name).open("wb") as file:
            file.seek(50 << 20)
            file.write(b"end")
    names = ["sparse", "é", "s" * 120]
    found = packed(guest, tmp_path / "a.tar", [made / name for name in names])
    assert found == tree.walk(made, names).manifest
    assert (tmp_path / "a.tar").stat().st_size < 1 << 20


@EACH
@pytest.mark.parametrize("missing", [["nosuch"], ["nosuch/x"], ["nosuch/x/y"], ["out/one", "nosuch", "out"]])
def test_a_missing_source_is_an_error_that_names_it(
    guest: ModuleType, made: Path, tmp_path: Path, missing: list[str]
) -> None:
    done = pack(guest, tmp_path / "a.tar", [made / name for name in missing])
    assert done.returncode != 0
    assert b"nosuch" in done.stderr


@EACH
def test_the_byte_that_stands_for_a_slash_while_sorting_is_kept(
    guest: ModuleType, made: Path, tmp_path: Path
) -> None:
    (made / "a\x01b").mkdir()
    (made / "a\x01b" / "\x01").write_text("text")
    found = packed(guest, tmp_path / "a.tar", [made / "a\x01b"], rename="c\x01")
    assert found == tree.walk(made, ["a\x01b"], rename="c\x01").manifest


@EACH
def test_a_socket_is_skipped_and_a_pipe_is_not(guest: ModuleType, made: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(made / "socket"))
    os.mkfifo(made / "fifo")
    done = pack(guest, tmp_path / "a.tar", [made])
    assert done.returncode == 0
    with tarfile.open(tmp_path / "a.tar", errors="surrogateescape") as members:
        assert {"made/fifo"} == {name for name in members.getnames() if name in ("made/fifo", "made/socket")}
