"""The files of copies on their way through a remote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from obuild.builder.farm import sources
from obuild.errors import ObuildError
from obuild.plan import archive, tree
from obuild.remotes.all import Access, open_remote
from obuild.remotes.slices import SLICE
from tests.support.remotes import Watched


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Watched]:
    with open_remote(f"dir:{tmp_path / 'remote'}", Access({})) as opened:
        yield Watched(opened)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with files of all kinds and sizes."""
    root = tmp_path / "source"
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "large").write_bytes(os.urandom(2 * SLICE + 5))
    for number in range(20):
        (root / f"small-{number}").write_bytes(os.urandom(900_000))
    (root / "sub" / "twin").write_bytes((root / "small-1").read_bytes())
    (root / "nothing").touch()
    (root / "sub" / "twin").chmod(0o4750)
    (root / "link").symlink_to("sub/../odd \udcff")
    (root / "hard").hardlink_to(root / "small-2")
    os.utime(root / "sub", (1_600_000_000, 1_600_000_000))
    os.utime(root / "link", (1_500_000_000, 1_500_000_000), follow_symlinks=False)
    return root


def sent(files: tree.Tree) -> bytes:
    """What a guest gets of a tree."""
    out = BytesIO()
    archive.send(files, out, uid=1, gid=2)
    return out.getvalue()


def test_a_guest_gets_the_same_from_the_other_host(remote: Watched, source: Path, tmp_path: Path) -> None:
    files = tree.walk(source, ["."])
    packed = sources.pack(remote, files)
    (tmp_path / "there").mkdir()
    found = sources.unpack(remote, packed, tree.Tree(Path("/nowhere"), files.entries), tmp_path / "there")
    assert found.manifest == files.manifest
    assert sent(found) == sent(files)
    assert max(sum(part.length for part in pack.parts) for pack in packed.packs) <= SLICE
    assert len(packed.packs) == 3 + 5, "small files share packs, and twins are sent once"


def test_what_is_there_is_not_sent_again(remote: Watched, source: Path) -> None:
    sources.pack(remote, tree.walk(source, ["."]))
    remote.sent.clear()
    sources.pack(remote, tree.walk(source, ["."]))
    assert remote.sent == []
    (source / "small-9").write_bytes(os.urandom(900_000))
    sources.pack(remote, tree.walk(source, ["."]))
    assert len(remote.sent) == 1, "the pack that it is in"


@pytest.mark.parametrize("name", ["small-3", "large"])
def test_a_file_that_changes_while_it_is_sent_fails(remote: Watched, source: Path, name: str) -> None:
    files = tree.walk(source, ["."])
    (source / name).write_bytes(os.urandom((source / name).stat().st_size))
    with pytest.raises(ObuildError, match="changed while it was being sent"):
        sources.pack(remote, files)


def test_nothing_outside_its_folder_is_touched(remote: Watched, tmp_path: Path) -> None:
    """Whatever an order says: names of files are not taken from it."""
    (tmp_path / "there").mkdir()
    entries = (
        tree.Entry("symlink", "../up", "../up", 0o777, 0, "/etc"),
        tree.Entry("dir", "/abs", "/abs", 0o755),
        tree.Entry("file", "../up/passwd", "../../passwd", 0o644, 0, "0" * 64),
    )
    sources.unpack(remote, sources.Packed((), (0, 0, 0)), tree.Tree(Path("/"), entries), tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["0", "1", "2"]


def test_a_pack_with_too_much_is_refused(remote: Watched, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    blob = sources.put(remote, b"12345")
    packed = sources.Packed((sources.Pack(blob, (sources.Part("0" * 64, 0, 5),)),), (0,))
    entries = (tree.Entry("file", "x", "x", 0o644, 3, "0" * 64),)
    with pytest.raises(ValueError, match="more than its files"):
        sources.unpack(remote, packed, tree.Tree(Path("/"), entries), tmp_path / "there")
